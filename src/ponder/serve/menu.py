"""What may be asked of this server, and a request in ponder's words: prompts, a strategy with its settings, a budget.

Names from a request become objects by the catalogue's tables without those that read files or run code.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import ponder.catalogue as catalogue
from ponder.core.asks import AnswerReader, Extend, Extension, Form, Json, JsonSchema, Outcome, Prompt, Sampling, TokenLogP
from ponder.core.budget import Budget, parse_budget
from ponder.core.errors import BadField, PonderError
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Strategy
from ponder.run.spec import FilesToo, Specs
from ponder.serve.errors import Refusal, bad
from ponder.serve.tools import Template, Tools, is_about_tools, rendered, tools_of
from ponder.serve.wire import MAX_CHOICES, ChatRequest, CompletionRequest, Generation, NamedSchema, SchemaFormat

SANDBOX = "ponder.verify.sandbox"  # a verifier whose module takes something from there executes what a model wrote
MAX_SETTING = 256  # largest whole number that a request may set a strategy's field to, or four times its default
SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request in ponder's words."""

    prompts: tuple[Prompt, ...]
    num: int  # choices of each prompt
    spec: str
    strategy: Strategy
    budget: Budget
    is_urgent: bool  # the client named seconds
    seed: int | None
    logprobs: int | None
    is_plain: bool  # the text of its first extension is the answer from the first token on
    is_live: bool  # the client wants to see answers that may be revised
    user: str | None
    tools: Tools | None = None  # which the answer may call
    prompt_field: str = "messages"  # of the request

    @property
    def is_watched(self) -> bool:
        return self.is_plain or self.is_live


@dataclass(frozen=True, kw_only=True)
class Menu:
    """model: the name that requests call it by. most: what one request may spend, and does unless it names less."""

    model: str
    default: str = "sample"
    most: Budget = field(default_factory=Budget)
    allow_code: bool = False
    max_tokens: int = 1024  # of an answer whose request names no limit

    @cached_property
    def specs(self) -> Specs:
        verifiers = {name: v for name, v in catalogue.VERIFIERS.items() if self.allow_code or not runs_code(v)}
        parts = {name: table.table if isinstance(table, FilesToo) else table for name, table in catalogue.PARTS.items()}
        return Specs("strategy", catalogue.STRATEGIES, parts | {"verifier": verifiers})

    @cached_property
    def read(self) -> Callable[[str], Strategy]:
        """The strategy of a spec, of which clients repeat few. Raises as `_checked`."""
        return lru_cache(maxsize=256)(self._checked)

    @property
    def models(self) -> list[str]:
        return [self.model, *(f"{self.model}@{name}" for name in catalogue.STRATEGIES)]

    def order(self, request: ChatRequest | CompletionRequest, headers: Mapping[str, str], template: Template | None = None) -> Order:
        """template: the model's, where it has one. Raises Refusal for what cannot be honoured."""
        source, spec = self._spec(request, headers)
        name = spec.partition(":")[0].strip()
        strategy = with_sampling(self._strategy(source, spec), name, spec, request)
        logprobs = _logprobs(request, name, is_direct(strategy))
        tools = tools_of(request) if isinstance(request, ChatRequest) else None
        prompts = self._prompts(request, tools, template)
        num = request.n or 1
        if num * len(prompts) > MAX_CHOICES:
            raise bad("n", f"n={num} of {len(prompts)} prompts: at most {MAX_CHOICES} choices in one request")
        if request.stream_options is not None and not request.stream:
            raise bad("stream_options", "stream_options without stream=true: set stream, or leave it out")
        is_live = request.ponder is not None and request.ponder.stream == "live"
        if is_live and not request.stream:
            raise bad("ponder.stream", "ponder.stream='live' without stream=true: set stream, or leave it out")
        budget = self._budget(request, headers)
        return Order(
            prompts=prompts, num=num, spec=spec, strategy=strategy if logprobs is None else Logged(strategy=strategy, num=logprobs),
            budget=budget, is_urgent=budget.seconds != self.most.seconds, seed=request.seed, logprobs=logprobs,
            is_plain=is_direct(strategy) and tools is None, is_live=is_live, user=request.user, tools=tools,
            prompt_field="messages" if isinstance(request, ChatRequest) else "prompt",
        )  # fmt: skip

    def _spec(self, request: Generation, headers: Mapping[str, str]) -> tuple[str, str]:
        """(where it stands, the spec): in the model's name, in the body or in a header."""
        model, _, suffix = request.model.partition("@")
        if model != self.model:
            message = f"model {request.model[:100]!a} is not here: this server has {self.model}, also as {self.model}@STRATEGY (see /v1/models)"
            raise Refusal(404, message, param="model", code="model_not_found")
        named = {
            "model": suffix,
            "ponder.strategy": (request.ponder and request.ponder.strategy) or "",
            "X-Ponder-Strategy": headers.get("x-ponder-strategy", ""),
        }
        given = {source: spec for source, spec in named.items() if spec}
        if len(set(given.values())) > 1:
            source = list(given)[-1]
            raise bad(source, f"{source} names another strategy than {next(iter(given))}; name one")
        return next(iter(given.items()), ("model", self.default))

    def _strategy(self, source: str, spec: str) -> Strategy:
        try:
            return self.read(spec)
        except (PonderError, ValueError, OverflowError) as error:
            raise bad(source, f"{source}: {error}") from error

    def _checked(self, spec: str) -> Strategy:
        """Raises PonderError, ValueError or OverflowError for a spec that cannot be had from here."""
        found: Any = self.specs.read(spec)
        usual = self.specs.settable(catalogue.STRATEGIES[spec.partition(":")[0].strip()])
        for name, value in self.specs.settable(found).items():
            limit = max(MAX_SETTING, 4 * default) if isinstance(default := usual.get(name), int) else MAX_SETTING
            if isinstance(value, int) and not -limit <= value <= limit:
                raise BadField(f"{name}={value} is more than a request may ask for; at most {limit}")
        return found  # type: ignore[no-any-return]

    def _budget(self, request: Generation, headers: Mapping[str, str]) -> Budget:
        named = {"ponder.budget": (request.ponder and request.ponder.budget) or "", "X-Ponder-Budget": headers.get("x-ponder-budget", "")}
        given = {source: text for source, text in named.items() if text}
        if len(set(given.values())) > 1:
            raise bad("X-Ponder-Budget", "X-Ponder-Budget is another budget than ponder.budget; name one")
        limits: dict[str, Any] = {}
        for source, text in given.items():
            try:
                asked = parse_budget(text)
            except (PonderError, ValueError, OverflowError) as error:
                raise bad(source, f"{source}: {error}") from error
            for unit in ("tokens", "seconds", "flops", "usd", "calls"):
                limit, most = getattr(asked, unit), getattr(self.most, unit)
                if limit is not None and most is not None and limit > most:
                    raise bad(source, f"{source}: {limit:g} {unit} is more than this server allows a request: {most:g}")
                limits |= {} if limit is None else {unit: limit}
        return replace(self.most, **limits)

    def _prompts(self, request: ChatRequest | CompletionRequest, tools: Tools | None, template: Template | None) -> tuple[Prompt, ...]:
        readers: dict[str, AnswerReader] = catalogue.READERS
        reader = (request.ponder and request.ponder.answer) or "text"
        if reader not in readers:
            raise bad("ponder.answer", f"ponder.answer={reader!a}: one of {', '.join(readers)}")
        if isinstance(request, CompletionRequest):
            conversations: list[tuple[tuple[str, str], ...]] = [(("raw", text),) for text in request.prompts]
            num, form = request.max_tokens or 16, None
        else:
            conversations = [tuple(("system" if m.role == "developer" else m.role, m.text) for m in request.messages)]
            if is_about_tools(request, tools):
                conversations = [(("raw", rendered(request, tools, template)),)]
            if None not in (request.max_tokens, request.max_completion_tokens) and request.max_tokens != request.max_completion_tokens:
                raise bad("max_tokens", "max_tokens differs from max_completion_tokens; give one")
            num, form = request.max_completion_tokens or request.max_tokens or self.max_tokens, form_of(request, tools)
        return tuple(Prompt(messages=c, stop=request.stops, max_tokens=num, answers=readers[reader], form=form) for c in conversations)


def runs_code(verifier: object) -> bool:
    """Whether a verifier has the sandbox at hand."""
    module = sys.modules[type(verifier).__module__]
    return module.__name__ == SANDBOX or any(getattr(value, "__module__", None) == SANDBOX for value in vars(module).values())


def form_of(request: ChatRequest, tools: Tools | None) -> Form | None:
    wanted = request.response_format
    if tools is not None:
        return tools.form
    if wanted is None or wanted.type == "text":
        return None
    return JsonSchema(_schema(wanted.json_schema)) if isinstance(wanted, SchemaFormat) else Json()


def _schema(named: NamedSchema) -> str:
    return json.dumps(named.schema_)


def is_direct(strategy: object) -> bool:
    """Whether its first text is the answer (core.roles): it streams token by token, its log-probabilities are known."""
    return bool(getattr(strategy, "is_direct", False))


def _logprobs(request: ChatRequest | CompletionRequest, name: str, is_told: bool) -> int | None:
    if isinstance(request, CompletionRequest):
        num = request.logprobs
    else:
        if request.top_logprobs is not None and not request.logprobs:
            raise bad("top_logprobs", "top_logprobs without logprobs=true: set logprobs, or leave it out")
        num = (request.top_logprobs or 0) if request.logprobs else None
    if num is not None and not is_told:
        direct = " or ".join(known for known, strategy in catalogue.STRATEGIES.items() if is_direct(strategy))
        raise bad("logprobs", f"logprobs: strategy {name} does not report them; ask for {direct}, or leave them out")
    return num


def with_sampling(strategy: Strategy, name: str, spec: str, request: Generation) -> Strategy:
    """The strategy drawing as the request says. Raises Refusal where it draws nothing, or where its spec says it too."""
    changes: dict[str, Any] = {key: value for key in SAMPLING if (value := getattr(request, key)) is not None}
    if not changes:
        return strategy
    twice = [key for key in changes if re.search(rf"\b{key}\s*=", spec)]
    if twice:
        raise bad(twice[0], f"{twice[0]} is set by the strategy {spec!a} too; set it once")
    if "logit_bias" in changes:
        changes["logit_bias"] = tuple(sorted({int(token): bias for token, bias in changes["logit_bias"].items()}.items()))
    if name == "greedy":  # the most likely token, whatever is cut off
        changes = {k: v for k, v in changes.items() if k != "top_p" and not (k == "temperature" and v == 0)}
    try:
        drawn: Strategy = redrawn(strategy, changes)
    except BadField as error:
        raise bad(next(iter(changes)), str(error)) from error
    if changes and drawn == strategy and not has_sampling(strategy):
        key = next(iter(changes))
        raise bad(key, f"{key}: strategy {name} draws in its own way; leave it out, or ask for another strategy")
    return drawn


def redrawn(value: Any, changes: Mapping[str, Any]) -> Any:
    """`value` with those fields of every Sampling in it set."""
    if isinstance(value, Sampling):
        return replace(value, **changes)
    if not is_dataclass(value) or isinstance(value, type) or not has_sampling(value):
        return value
    found = {f.name: redrawn(getattr(value, f.name), changes) for f in fields(value) if has_sampling(getattr(value, f.name))}
    return replace(value, **found)


def has_sampling(value: Any) -> bool:
    if isinstance(value, Sampling):
        return True
    return is_dataclass(value) and not isinstance(value, type) and any(has_sampling(getattr(value, f.name)) for f in fields(value))


@dataclass(frozen=True, kw_only=True)
class Logged:
    """`strategy`, each of whose answers is one Extend, with the log-probabilities of its first candidate among the diagnostics."""

    strategy: Strategy
    num: int  # alternatives of each token

    @property
    def guarantee(self) -> Guarantee:
        return self.strategy.guarantee

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        asking, told = self.strategy.run(prompt, rng), dict[tuple[int, ...], tuple[TokenLogP, ...]]()
        try:
            turn = next(asking)
            while True:
                asks = tuple(replace(ask, logprobs=self.num) if isinstance(ask, Extend) else ask for ask in turn.asks)
                answers = yield replace(turn, asks=asks)
                told |= {a.prefix.tokens: a.logprobs for a in answers if isinstance(a, Extension)}
                turn = asking.send(answers)
        except StopIteration as stop:
            outcome: Outcome = stop.value
        first = outcome.candidates[0].tokens if outcome.candidates else ()
        rows = [[t.token, t.log_p, [list(pair) for pair in t.top]] for t in told.get(first, ())]
        return replace(outcome, diagnostics=outcome.diagnostics | {"logprobs": rows})


def described(menu: Menu) -> dict[str, object]:
    """Every strategy with its fields, and the names that fields take."""
    specs = menu.specs
    return {
        "default": menu.default,
        "strategies": [
            {"name": name, "summary": _summary(found), "guarantee": str(found.guarantee), "fields": _fields(specs, found)}
            for name, found in catalogue.STRATEGIES.items()
        ],
        "choices": {name: sorted(table) for name, table in specs.parts.items()},
        "answers": list(catalogue.READERS),
    }


def _summary(strategy: object) -> str:
    """The idea in one line, as its card begins."""
    return (sys.modules[type(strategy).__module__].__doc__ or "").partition("\n")[0]


def _fields(specs: Specs, strategy: object) -> list[dict[str, object]]:
    return [{"name": name, "default": _named(value), "choices": name in specs.parts} for name, value in specs.settable(strategy).items()]


def _named(value: object) -> object:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Sequence):
        return [_named(v) for v in value]
    return getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)
