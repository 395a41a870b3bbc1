"""lm-evaluation-harness: the model class `ponder`, whose answers come from any strategy under a budget.

    python -m ponder.connect.lm_eval --model ponder --model_args model=smollm2-135m,strategy=self_consistency:num=4 --tasks gsm8k --limit 20

generate_until is the strategy's answer; loglikelihood is the model's own, whatever the strategy. All requests of a call share the engine.

Differs    A continuation is tokenized apart from its context (the harness's own Hugging Face model tokenizes both together), and is greedy
           when its text is what the most likely tokens spell. Texts beyond the context are scored in pieces that begin after the last 32
           characters before them. Where a model has no token that begins a text, an empty context is a line break.
"""

import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

import ponder.catalogue as catalogue
from ponder.connect.model import Model, load, recipe_of, sampled
from ponder.core.asks import Answer, Candidate, Expand, Expansion, Outcome, Prefix, Prompt, Score, Scores, Turn
from ponder.core.budget import Budget
from ponder.core.errors import BadField, PonderError
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe, Result

CHAT = "ponder messages: "  # begins a context that is a conversation in JSON
OVERLAP = 32  # characters before a piece of a long text that it is scored after
GENERATION = {"until", "max_gen_toks", "max_tokens", "do_sample", "temperature", "top_p", "top_k"}


@register_model("ponder")
class Ponder(LM):  # type: ignore[misc]
    """model: a name, path or opened Model. strategy, budget and answer as on the command line."""

    def __init__(
        self, model: str | Model = catalogue.DEFAULT_MODEL, *, strategy: str = "greedy", budget: str = "20000 tokens", answer: str = "text",
        seed: int = 0, weights: str | None = None, threads: int | None = None, device: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model if isinstance(model, Model) else load(model, weights=weights, threads=threads, device=device or "cpu")
        self.process = self.model.process
        self.strategy, self.seed = strategy, int(seed)
        self.recipe, self.budget = recipe_of(strategy, budget), budget
        self.reader = catalogue.READERS[answer]
        self.results: list[Result] = []  # of the last generate_until: costs, confidence and verdicts beside the texts

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> "Ponder":
        """Batch sizes are left out: the engine takes as many sequences as its memory holds. The harness names a card even where there is
        none: that is the CPU then, and a device among the model's own arguments is what it says."""
        more = {k: v for k, v in (additional_config or {}).items() if v is not None and k not in ("batch_size", "max_batch_size")}
        if not torch.cuda.is_available():
            more.pop("device", None)
        return cls(**(more | arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "Ponder":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        return self.process.model_id.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The engine applies the model's own template."""
        return "the model's own"

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return CHAT + json.dumps([[turn["role"], turn["content"]] for turn in chat_history])

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, recipes = [], []
        for context, settings in (request.args for request in requests):
            recipes.append(self._recipe(settings))
            prompts.append(self._prompt(context, settings))
        self.results = self._run(prompts, recipes)
        texts = [result.text for result in self.results]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        found = [(float(r.candidates[0].log_p), r.diagnostics["is_greedy"] is True) for r in self._score(pairs)]
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, value)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        pieces = [self._pieces(request.args[0]) for request in requests]
        scores = iter(self._score([pair for each in pieces for pair in each]))
        return [sum(next(scores).candidates[0].log_p for _ in each) for each in pieces]

    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[Result]:
        recipes = [Recipe(label="likelihood", strategy=Likelihood(option=option), budget=Budget()) for _, option in pairs]
        return self._run([self._prompt(context, {}) for context, _ in pairs], recipes)

    def _run(self, prompts: Sequence[Prompt], recipes: Sequence[Recipe]) -> list[Result]:
        jobs = [Job(id=str(i), prompt=p, recipe=r, seed=self.seed + i) for i, (p, r) in enumerate(zip(prompts, recipes, strict=True))]
        found = [result for _, result in Driver(self.process).run(jobs)]
        for result in found:
            if result.stop_reason == "failed":
                raise PonderError(str(result.diagnostics["error"]))
        return found

    def _prompt(self, context: str, settings: dict[str, Any]) -> Prompt:
        until = settings.get("until") or []
        stop = tuple(s for s in ([until] if isinstance(until, str) else until) if s)
        most = int(settings.get("max_gen_toks") or settings.get("max_tokens") or 256)
        if context.startswith(CHAT):
            messages = tuple((role, text) for role, text in json.loads(context.removeprefix(CHAT)))
        else:
            messages = (("raw", context if context or self._begins() else "\n"),)
        return Prompt(messages=messages, stop=stop, max_tokens=most, answers=self.reader)

    def _recipe(self, settings: dict[str, Any]) -> Recipe:
        """The strategy, with the task's sampling where the task wants any. A setting that is not honoured is refused."""
        if unknown := sorted(set(settings) - GENERATION):
            raise BadField(f"generation_kwargs {', '.join(unknown)}: not honoured; leave out, or use {', '.join(sorted(GENERATION))}")
        wanted = {name: settings[name] for name in ("temperature", "top_p", "top_k") if settings.get(name) is not None}
        if settings.get("do_sample") is False or not wanted.get("temperature", 1.0) or self.strategy != "greedy":
            return self.recipe  # the strategy decides how it draws
        return recipe_of(sampled("sample", wanted), self.budget) if wanted or settings.get("do_sample") else self.recipe

    def _pieces(self, text: str) -> list[tuple[str, str]]:
        """(context, piece) pairs that together are the text, each within the model's context."""
        pairs, start = [], 0
        while start < len(text):
            context, size = text[max(0, start - OVERLAP) : start], len(text) - start
            while self._len(context) + self._len(text[start : start + size]) >= self.process.context_len - 2:
                size = max(1, size * 3 // 4)
            pairs.append((context, text[start : start + size]))
            start += size
        return pairs

    def _len(self, text: str) -> int:
        return self.process.prompt_len(Prompt(messages=(("raw", text),))) if text else 1

    def _begins(self) -> bool:
        """Whether the model has a token that begins a text, so that an empty prompt is one."""
        try:
            return self.process.prompt_len(Prompt(messages=(("raw", ""),))) > 0
        except BadField:
            return False


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """A strategy that says how likely `option` is as the answer, and whether the most likely tokens spell it."""

    option: str

    guarantee: ClassVar[Guarantee] = Guarantee.EXACT

    def run(self, prompt: Prompt, rng: Rng) -> Generator[Turn, Sequence[Answer], Outcome]:
        prefix = Prefix(prompt)
        scores, children = yield Turn((Score(prefix=prefix, options=(self.option,)), Expand(prefix=prefix, num=1)))
        assert isinstance(scores, Scores)
        while isinstance(children, Expansion) and children.children:
            prefix = children.children[0]
            if prefix.is_final or not self.option.startswith(prefix.text.rstrip("\ufffd")) or prefix.text == self.option:
                break
            (children,) = yield Turn((Expand(prefix=prefix, num=1),))
        return Outcome((Candidate(self.option, None, log_p=scores.log_p[0]),), diagnostics={"is_greedy": prefix.text.startswith(self.option)})


def main() -> None:
    """The harness's own command line, with `--model ponder`."""
    try:
        cli_evaluate()
    except PonderError as error:
        sys.exit(f"ponder: {error}")


if __name__ == "__main__":
    main()
