"""Inspect: the model provider `ponder/MODEL@STRATEGY`, and the solver `think`, which runs a strategy over any model of Inspect's.

    inspect eval task.py --model ponder/smollm2-135m@self_consistency:num=4 -M budget="4000 tokens"     (provider: the engine here)
    inspect eval task.py --model openai/gpt-... --solver ponder.connect.inspect/think                   (solver: somebody else's engine)

Samples that Inspect runs at once share the engine's steps. What a strategy found beside its answer (confidence, stop reason, cost,
diagnostics) is the output's metadata. A setting that is not honoured is refused.

Differs    Over somebody else's model a strategy sees texts only. What goes on from half an answer, expands, scores or reads hidden states
           is refused; tokens are the text's bytes; log-probabilities are not numbers, so what ranks by them abstains.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.model import Model as InspectModel
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect

import ponder.catalogue as catalogue
from ponder.connect.model import load, recipe_of, sampled
from ponder.connect.online import Online
from ponder.core.asks import Answer, Ask, Extend, Extension, JsonSchema, Judge, Judgement, Outcome, Prompt, Turn, spent_answer
from ponder.core.budget import Budget, Cost, parse_budget
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng, hash_seed
from ponder.run.codec import cost_json
from ponder.run.driver import Job
from ponder.run.judging import Judging
from ponder.run.recipe import Result

HONOURED = {"max_tokens", "temperature", "top_p", "top_k", "stop_seqs", "seed", "response_schema", "system_message"}
HARMLESS = {
    "max_retries",
    "timeout",
    "attempt_timeout",
    "max_connections",
    "adaptive_connections",
    "cache",
    "batch",
    "max_tool_output",
    "internal_tools",
}
MAX_TOKENS = 512
UNKNOWN = float("nan")


@modelapi(name="ponder")
class PonderAPI(ModelAPI):  # type: ignore[misc]
    """model_name: MODEL or MODEL@STRATEGY. budget and answer as on the command line, of each question."""

    def __init__(
        self, model_name: str, *, base_url: str | None = None, api_key: str | None = None, config: GenerateConfig | None = None,
        budget: str = "20000 tokens", answer: str = "text", threads: int | None = None, opened: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        name, _, strategy = model_name.partition("@")
        self.strategy, self.budget, self.reader = strategy or "greedy", budget, catalogue.READERS[answer]
        recipe_of(self.strategy, budget)  # a mistake is refused before the model is opened
        self.online = Online((opened or load(name, threads=threads)).process)

    async def generate(self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        if tools:
            raise BadField(f"tools {[tool.name for tool in tools]}: ponder's models call none; leave them out")
        settings = wanted(config)
        spec = self._spec({name: settings[name] for name in ("temperature", "top_p", "top_k") if name in settings})
        prompt = prompt_from(input, settings, self.reader)
        seed = hash_seed(settings.get("seed", 0), repr(prompt.messages))
        answer = self.online.ask(Job(id="", prompt=prompt, recipe=recipe_of(spec, self.budget), seed=seed))
        return output_of(await asyncio.wrap_future(answer), self.model_name, prompt)

    def _spec(self, drawing: dict[str, float]) -> str:
        """The strategy that draws so. Greedy decoding is what temperature 0 means; at another one it is sampling."""
        if self.strategy == "greedy":
            return sampled("sample", drawing) if drawing and drawing.get("temperature", 1.0) > 0 else self.strategy
        return sampled(self.strategy, drawing)

    def max_connections(self) -> int:
        return 32


def wanted(config: GenerateConfig) -> dict[str, Any]:
    """The settings that are given. Raises BadField for one that would be ignored."""
    settings = {name: value for name, value in config.model_dump(exclude_none=True).items() if name not in HARMLESS}
    if unknown := sorted(set(settings) - HONOURED):
        raise BadField(f"generate config {', '.join(unknown)}: not honoured; leave out, or use {', '.join(sorted(HONOURED))}")
    return settings


def prompt_from(messages: Sequence[ChatMessage], settings: dict[str, Any], reader: Any) -> Prompt:
    for message in messages:
        if message.role == "tool" or not (isinstance(message.content, str) or all(part.type == "text" for part in message.content)):
            raise BadField(f"message of {message.role}: only texts of system, user and assistant are read")
    schema = settings.get("response_schema")
    form = None if schema is None else JsonSchema(json.dumps(schema["json_schema"]))
    pairs = tuple((message.role, message.text) for message in messages)
    return Prompt(
        messages=pairs, stop=tuple(settings.get("stop_seqs", ())), max_tokens=settings.get("max_tokens", MAX_TOKENS), answers=reader, form=form
    )


def output_of(result: Result, model: str, prompt: Prompt) -> ModelOutput:
    if result.stop_reason == "failed":
        raise BadField(str(result.diagnostics["error"]))
    finish = result.candidates[0].finish if result.candidates else "budget"
    usage = ModelUsage(
        input_tokens=result.cost.prompt_tokens + result.cost.verifier_tokens, output_tokens=result.cost.generated_tokens,
        total_tokens=result.cost.tokens, input_tokens_cache_read=result.cost.reused_tokens,
    )  # fmt: skip
    message = ChatMessageAssistant(content=result.text, model=model, source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason="stop" if finish == "stop" else "max_tokens")
    return ModelOutput(model=model, choices=[choice], usage=usage, metadata=facts_of(result))


def facts_of(result: Result) -> dict[str, Any]:
    cost = cost_json(result.cost) | {"seconds": result.cost.seconds}
    facts = {"answer": result.answer, "confidence": result.confidence, "stop_reason": result.stop_reason, "candidates": len(result.candidates)}
    return {"ponder": facts | {"cost": cost, "diagnostics": result.diagnostics}}


@solver
def think(
    *, strategy: str = "self_consistency:num=4", budget: str = "20000 tokens", answer: str = "text", seed: int = 0, max_tokens: int = MAX_TOKENS
) -> Solver:
    """A strategy over the model that Inspect evaluates."""
    recipe, reader = recipe_of(strategy, budget), catalogue.READERS[answer]

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        prompt = prompt_from(state.messages, {"max_tokens": max_tokens}, reader)
        running = Remote(get_model(), parse_budget(budget))
        outcome = await running.run(recipe.strategy.run(prompt, TorchRng(hash_seed(seed, str(state.sample_id), state.epoch))))
        best = outcome.candidates[0]
        result = Result(answer=best.answer, candidates=outcome.candidates, confidence=outcome.confidence, cost=running.cost,
                        stop_reason=running.stop_reason, diagnostics=outcome.diagnostics)  # fmt: skip
        state.output = ModelOutput.from_content(str(get_model()), best.text)
        state.output.metadata = facts_of(result)
        state.messages.append(state.output.message)
        return state

    return solve


@dataclass
class Remote:
    """Answers a strategy's asks by a model of Inspect's, those of a turn together, until the budget is spent."""

    model: InspectModel
    budget: Budget
    cost: Cost = field(default_factory=Cost)
    stop_reason: str = "done"
    judging: Judging = field(default_factory=lambda: Judging(600.0))

    async def run(self, asking: Any) -> Outcome:
        try:
            turn: Turn = next(asking)
            while True:
                turn = asking.send(await self._answers(turn.asks))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _answers(self, asks: Sequence[Ask]) -> list[Answer]:
        if spent := self.budget.spent_by(self.cost):
            self.stop_reason = spent
            return [spent_answer(ask) for ask in asks]
        answers = await collect(*[self._judged(ask) if isinstance(ask, Judge) else self._extended(ask) for ask in asks])
        self.cost = sum((answer.cost for answer in answers), self.cost)
        return list(answers)

    async def _judged(self, ask: Judge) -> Judgement:
        parts, fault = self.judging.asks(ask)
        if fault:
            return spent_answer(ask)  # type: ignore[return-value]
        answers = [await self._extended(part) for part in parts]
        verdicts, _ = await asyncio.get_running_loop().run_in_executor(None, partial(self.judging.verdicts, ask, answers))
        return Judgement(verdicts, sum((answer.cost for answer in answers), Cost()).as_verifier())

    async def _extended(self, ask: Ask) -> Extension:
        if not isinstance(ask, Extend) or ask.prefix.text or ask.until or ask.drift or ask.probes or ask.forced or ask.prefix.prompt.form:
            what = "goes on from half an answer" if isinstance(ask, Extend) else f"asks for {type(ask).__name__}"
            raise BadField(f"the strategy {what}, which a model of Inspect's cannot do; use one that draws whole answers, or --model ponder/...")
        prompt, drawn = ask.prefix.prompt, ask.sampling
        most = prompt.max_tokens if ask.max_tokens is None else min(prompt.max_tokens, ask.max_tokens)
        config = GenerateConfig(
            max_tokens=most, temperature=drawn.temperature, top_p=drawn.top_p if drawn.top_p < 1 else None, top_k=drawn.top_k,
            stop_seqs=list(prompt.stop) or None, seed=ask.seed % (1 << 31),
        )  # fmt: skip
        output = await self.model.generate([MESSAGES[role](content=text) for role, text in prompt.messages], config=config, cache=False)
        finish = "stop" if output.stop_reason == "stop" else "length"
        text = output.completion
        usage = output.usage or ModelUsage()
        cost = Cost(prompt_tokens=usage.input_tokens, reused_tokens=usage.input_tokens_cache_read or 0, generated_tokens=usage.output_tokens, calls=1)
        grown = replace(ask.prefix, text=text, tokens=tuple(text.encode()), log_p=UNKNOWN, log_q=UNKNOWN, certainty=UNKNOWN, finish=finish)
        return Extension(grown, finish, cost)


MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
