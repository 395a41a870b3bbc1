"""What a strategy may ask for, and what it is told. All of it is plain immutable data, so a trace can hold it.

A strategy yields a `Turn` (asks + its best candidates so far) and receives one answer per ask, in order:

    Extend -> Extension     go on from a prefix: up to max_tokens, or until a stop
    Expand -> Expansion     the most likely next tokens of a prefix, each as a child prefix
    Score  -> Scores        log-probability of given continuations of a prefix
    Read   -> Readings      what a probe sees in the hidden states along a prefix
    Confer -> Extensions    several Extends at once, which read each other's tokens as they are written
    Judge  -> Judgement     one verdict per candidate

When the budget is spent, every ask is still answered, at no cost: Extend with finish "budget" and no tokens, Expand
with no children, Score with no values, Read with no rows, Judge with abstentions, Confer as its Extends. So a strategy needs no special case: it
runs to its end. Likewise an ask about a prompt of the strategy's or a verifier's own making that the model's context cannot
hold: Extend is answered with finish "length" and no tokens, Confer as its Extends, all others as above.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from ponder.core.beside import check_layout
from ponder.core.budget import Cost
from ponder.core.errors import BadField
from ponder.core.probe import Probe, Row

FINAL = ("stop", "length", "budget")  # a prefix with one of these grows no further


class AnswerReader(Protocol):
    """Finds the answer in a text and says when two answers are the same. Pure; no cost."""

    def read(self, text: str) -> str | None:
        """The answer in canonical form, or None when the text has none (never an exception)."""
        ...

    def same(self, a: str, b: str) -> bool:
        """Equivalence of two canonical answers; reflexive and symmetric."""
        ...


@dataclass(frozen=True)
class WholeText:
    """Reads the whole text as the answer; equal when equal but for case and white space."""

    def read(self, text: str) -> str | None:
        return " ".join(text.split()) or None

    def same(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


@dataclass(frozen=True)
class Regex:
    """The answer matches `pattern` as a whole. Rust syntax: no look-around, no back references; `.` is no newline."""

    pattern: str


@dataclass(frozen=True)
class Json:
    """The answer is one JSON value, with at most 20 white-space characters between two of its parts."""


@dataclass(frozen=True)
class JsonSchema:
    """The answer is JSON, spaced as in Json, that `schema` (JSON text) admits; an object's properties come in the schema's order."""

    schema: str


@dataclass(frozen=True)
class Grammar:
    """The answer is a sentence of a context-free grammar in Lark's notation whose first symbol is `start`."""

    lark: str


@dataclass(frozen=True)
class Choice:
    """The answer is one of `options`, character by character."""

    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.options, str) or not any(self.options):
            raise BadField(f"choice options={self.options!r}: must be a tuple of texts that are not all empty, as in ('yes', 'no')")


Form = Regex | Json | JsonSchema | Grammar | Choice  # a set of texts that the answer must be in


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked, before any token of the answer. Text only: a process turns it into tokens.

    With a `form`, only tokens that keep the answer in it are drawn (Extend) or listed (Expand), and the end only where the
    answer is complete; where nothing else is possible the end is drawn. log_p stays the model's own, log_q is under the
    restricted distribution: weights exp(log_p - log_q) aim at p(x) 1[x in form], and average to the model's mass of it.
    An answer cut off by its length, a stop string or the budget is only the beginning of one in the form.

    messages: (role, content) pairs for the model's chat template; a single role "raw" is taken as it is.
    """

    messages: tuple[tuple[str, str], ...]
    prefill: str = ""  # beginning of the reply, put in the model's mouth
    stop: tuple[str, ...] = ()  # strings that end the answer; they never appear in it
    max_tokens: int = 256  # most tokens of one answer
    answers: AnswerReader = field(default_factory=WholeText)
    form: Form | None = None  # what the answer, after the prefill, must look like

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadField(f"prompt max_tokens={self.max_tokens}: must be at least 1")
        if any(not s for s in self.stop):
            raise BadField("prompt stop holds an empty string, which would stop every answer at once; remove it")

    @property
    def question(self) -> str:
        """Content of the last message."""
        return self.messages[-1][1]


def chat(text: str, *, max_tokens: int = 256, answers: AnswerReader | None = None) -> Prompt:
    """A prompt of one user message."""
    return Prompt(messages=(("user", text),), max_tokens=max_tokens, answers=answers or WholeText())


MAX_BIAS = 100.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn; the model's own probabilities (log_p) are not touched.

    First logits move: repetition, frequency and presence penalties of tokens that the answer already holds, logit_bias, then
    the prompt's form. Then they are shaped: temperature, top_k, top_p, min_p, in this order. temperature 0 is greedy.
    With n occurrences so far and logit z: z <- (z / repetition if z > 0 else z * repetition) - frequency * n - presence.
    Raises BadField for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None  # keep the k most likely tokens
    top_p: float = 1.0  # keep the smallest set of most likely tokens with at least this mass
    min_p: float = 0.0  # keep tokens with at least this share of the most likely token's probability
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, nats added to its logit)
    presence_penalty: float = 0.0  # nats, once
    frequency_penalty: float = 0.0  # nats per occurrence
    repetition_penalty: float = 1.0  # above 1 discourages (Keskar et al. 2019, arXiv:1909.05858, section 4.1, with its sign mended)

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", self.min_p, 0 <= self.min_p < 1, "in [0, 1)"),
            ("logit_bias", self.logit_bias, are_biases(self.logit_bias), "pairs (token id, bias between -100 and 100), each id once"),
            ("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", self.frequency_penalty, -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty <= 10, "in (0, 10]"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"sampling {name}={value}: must be {rule}")

    @property
    def is_shaped(self) -> bool:
        """Whether temperature or a truncation changes the distribution that the moved logits stand for."""
        return self.temperature != 1.0 or self.top_k is not None or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


def are_biases(value: object) -> bool:
    """Whether `value` is a tuple of (token id, bias) with ids that differ."""
    if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return False
    ids = [token for token, _ in value]
    are_ids = all(isinstance(i, int) and i >= 0 for i in ids) and len(set(ids)) == len(ids)
    return are_ids and all(isinstance(b, int | float) and math.isfinite(b) and abs(b) <= MAX_BIAS for _, b in value)


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Prefix:
    """A prompt and the part of a completion that exists so far. A value: extending it makes a new one, forking is reuse.

    tokens are the completion's ids; text is their text with stop strings removed. log_p is the sum over tokens under
    the model itself (temperature 1, no truncation), log_q under the distribution they were drawn from.
    """

    prompt: Prompt
    tokens: tuple[int, ...] = ()
    text: str = ""
    log_p: float = 0.0
    log_q: float = 0.0
    certainty: float = 0.0  # sum over tokens of KL(uniform || model), nats; only where it was asked for
    finish: str | None = None  # None: may go on | "stop": the model ended it | "length" (or no token fits the form) | "budget"
    readings: tuple[tuple[str, tuple[Row, ...]], ...] = ()  # by probe name, a row per token: the last rows belong to the last tokens

    @property
    def is_final(self) -> bool:
        return self.finish is not None


@dataclass(frozen=True, kw_only=True)
class Extend:
    """Go on from `prefix` (not final) until an `until` string, the answer's end, or max_tokens more tokens."""

    prefix: Prefix
    seed: int  # the draw at absolute position i is a pure function of (seed, i, the model's distribution), and of drift
    max_tokens: int | None = None  # None: as many as the prompt's max_tokens still allows
    until: tuple[str, ...] = ()  # step separators: kept in the text; the new prefix may be extended again
    sampling: Sampling = field(default_factory=Sampling)
    certainty: bool = False  # fill Prefix.certainty
    logprobs: int | None = None  # fill Extension.logprobs, each with this many alternatives; 0: the drawn token's alone
    probes: tuple[Probe, ...] = ()  # fill Prefix.readings: what each reads in the state that a token is drawn from; no extra pass
    drift: tuple[tuple[int, float], ...] = ()  # (seed, share in [0, 1]): mixes that seed's noise into every draw's (core.noise)
    forced: tuple[int, ...] = ()  # the completion that it follows as far as this goes: the token at position i is forced[i], not drawn

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for _, share in self.drift):
            raise BadField(f"extend drift={self.drift}: each share must be in [0, 1]")
        if self.logprobs is not None and self.logprobs < 0:
            raise BadField(f"extend logprobs={self.logprobs}: must be at least 0, or None for no log-probabilities")


@dataclass(frozen=True)
class TokenLogP:
    """A drawn token and the most likely ones at its place, best first, all under the model itself, in nats."""

    token: int
    log_p: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log_p); the drawn token is among them only where it is that likely


@dataclass(frozen=True)
class Extension:
    """`prefix` is the grown one. finish: "until" | "limit" (max_tokens of the ask) or prefix.finish."""

    prefix: Prefix
    finish: str
    cost: Cost = field(default_factory=Cost)
    logprobs: tuple[TokenLogP, ...] = ()  # of the new tokens, in order; only where they were asked for


@dataclass(frozen=True, kw_only=True)
class Confer:
    """Go on with several Extends side by side, each of whose tokens reads what the others have written by then.

    Prompts read themselves alone; what they begin alike is common. Token i (from 0) of a completion reads, behind that, the rest of
    every prompt and the first i tokens of every other completion, or all where one is over, as the `layout` places and shows them
    (core.beside). Draws keep time: nobody's token i + 1 is drawn before everybody's token i, but for those that are over.
    """

    asks: tuple[Extend, ...]  # their prefixes are open
    layout: str = "contiguous"  # one of core.beside.LAYOUTS
    separator: str = "\n\n"  # what ends a step of an answer, where the layout moves steps
    enough: int | None = None  # once so many have ended, the others come back as they are then, finish "limit"; None: all

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if not self.asks or not self.separator:
            raise BadField(f"confer of {len(self.asks)} asks, separator {self.separator!r}: there must be at least one ask, and some separator")
        if self.enough is not None and not 1 <= self.enough <= len(self.asks):
            raise BadField(f"confer enough={self.enough} of {len(self.asks)} asks: must be between 1 and their number, or None for all")

    @property
    def prefix(self) -> Prefix:
        """Of the first ask."""
        return self.asks[0].prefix


@dataclass(frozen=True)
class Extensions:
    """One Extension per ask, in order, whose own costs are nothing: what they cost together is in `cost`."""

    extensions: tuple[Extension, ...]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Expand:
    """The `num` most likely next tokens of `prefix` (not final) under the model itself, among those that its form admits."""

    prefix: Prefix
    num: int


@dataclass(frozen=True)
class Expansion:
    """Children in order of falling log-probability; child.log_p - prefix.log_p is the token's. Empty: budget spent."""

    children: tuple[Prefix, ...]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Score:
    """log-probability of each option as a continuation of `prefix`, summed over its tokens. The prompt's form plays no part."""

    prefix: Prefix
    options: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """One log-probability per option, in order. Empty: budget spent."""

    log_p: tuple[float, ...]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What `probe` reads in the states of `prefix` (final or not). Place i is the state that has read the prompt and i tokens:
    the one that token i (from 0) was drawn from, so that places 0..n-1 give what Extend(probes=...) gives for n tokens."""

    prefix: Prefix
    probe: Probe
    places: tuple[int, ...]  # each between 0 and the number of the prefix's tokens

    def __post_init__(self) -> None:
        num = len(self.prefix.tokens)
        if not self.places or not all(0 <= place <= num for place in self.places):
            raise BadField(f"read places={self.places} of a prefix of {num} tokens: give at least one, each between 0 and {num}")


@dataclass(frozen=True)
class Readings:
    """One row per place, in order. Empty: budget spent."""

    rows: tuple[Row, ...]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Verdict:
    """A verifier's answer about one candidate. value None is an abstention: no opinion, never a zero.

    Larger is better. kind says what the value is: "probability" in [0, 1], "log_p" in nats, "score" without a unit.
    """

    value: float | None
    kind: str = "score"
    detail: str = ""


ABSTAIN = Verdict(None, "abstain")


@dataclass(frozen=True)
class Candidate:
    """A finished (or cut-off) answer. `answer` is the canonical form that the prompt's reader found, or None."""

    text: str
    answer: str | None
    tokens: tuple[int, ...] = ()
    log_p: float = 0.0
    log_q: float = 0.0
    certainty: float = 0.0
    finish: str | None = None
    score: float | None = None  # what the strategy ranked it by; None where it did not
    verdicts: tuple[Verdict, ...] = ()
    readings: tuple[tuple[str, tuple[Row, ...]], ...] = ()  # as the prefix has them

    @property
    def mean_log_p(self) -> float:
        """Per token, 0.0 for an empty candidate."""
        return self.log_p / max(1, len(self.tokens))


def candidate(prefix: Prefix, *, score: float | None = None, verdicts: tuple[Verdict, ...] = ()) -> Candidate:
    """The candidate that `prefix` is, its answer read by the prompt's reader."""
    return Candidate(
        prefix.text, prefix.prompt.answers.read(prefix.text), prefix.tokens, prefix.log_p, prefix.log_q,
        prefix.certainty, prefix.finish, score, verdicts, prefix.readings,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Have `verifier` (role Verifier) judge `candidates`, all answers to `prompt`."""

    verifier: object
    prompt: Prompt
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Judgement:
    verdicts: tuple[Verdict, ...]
    cost: Cost = field(default_factory=Cost)


Ask = Extend | Expand | Score | Read | Confer | Judge
Answer = Extension | Expansion | Scores | Readings | Extensions | Judgement


@dataclass(frozen=True)
class Turn:
    """What a strategy yields. `best` is what it would return if it had to stop now, best first."""

    asks: tuple[Ask, ...]
    best: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a strategy returns: candidates with the selected one first.

    confidence is the strategy's own estimate that the selected answer is right, in [0, 1], or None where it has none;
    it is not calibrated. diagnostics hold only str, numbers, and lists or dicts of them.
    """

    candidates: tuple[Candidate, ...]
    confidence: float | None = None
    diagnostics: dict[str, object] = field(default_factory=dict)


def spent_answer(ask: Ask) -> Answer:
    """The free answer to `ask` once the budget is spent (see the module docstring)."""
    if isinstance(ask, Extend):
        return Extension(replace(ask.prefix, finish="budget"), "budget")
    if isinstance(ask, Expand):
        return Expansion(())
    if isinstance(ask, Score):
        return Scores(())
    if isinstance(ask, Read):
        return Readings(())
    if isinstance(ask, Confer):
        return Extensions(tuple(Extension(replace(a.prefix, finish="budget"), "budget") for a in ask.asks))
    return Judgement(tuple(ABSTAIN for _ in ask.candidates))


def unfit_answer(ask: Ask) -> Answer:
    """The free answer to `ask` when its prompt does not fit the model's context: no room for a token, so finish "length"."""
    if isinstance(ask, Extend):
        return Extension(replace(ask.prefix, finish="length"), "length")
    if isinstance(ask, Confer):
        return Extensions(tuple(Extension(replace(a.prefix, finish="length"), "length") for a in ask.asks))
    return spent_answer(ask)
