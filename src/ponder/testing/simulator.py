"""Problems without a model: a world whose difficulty, depth and wrong answers are settings, and a fast process that answers in it.

An answer is `depth` steps of `step_tokens` tokens, then the answer itself. A step is sound ("s") or a slip ("x"), said in one of
`num_wordings` ways; an answer without a slip is right ("#0", "#00", ...), one with a slip gives a wrong answer, drawn by popularity.
So every probability is known in closed form, and log_p, beams and temperatures mean what they mean for a language model.

`World` is the model and its exact distribution; `ToyProcess(world)` is the obvious process, `Simulator(world)` the fast one: equal
answers, a whole Extend in one step. Strategies run on it unchanged, since any prompt that holds "problem 17" is about that problem.
"""

import bisect
import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from ponder.core.asks import Expand, Extend, Extension, Outcome, Prefix, Prompt, Sampling, Turn, spent_answer
from ponder.core.budget import Cost
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng, hash_seed
from ponder.core.roles import Strategy
from ponder.testing.run import answer_turn
from ponder.testing.toy import DEAD, SmallLM, ToyProcess, rendered, self_certainty
from ponder.testing.toy_jobs import Job

FILLER, NEWLINE = 0, 1
FIRST_WORDING = 2
NAMED = re.compile(r"problem (\d+)")
Row = tuple[float, ...]


@dataclass(frozen=True)
class SimulatedAnswer:
    """Reads what stands behind the last '#': '0' is the right answer of every problem."""

    def read(self, text: str) -> str | None:
        found = re.findall(r"#(\d+)", text)
        return str(int(found[-1])) if found else None

    def same(self, a: str, b: str) -> bool:
        return a == b


@dataclass(frozen=True)
class Problem:
    """sound[t]: chance that step t is sound. wrong[j]: share of wrong answer j + 1 among wrong answers."""

    index: int
    sound: Row
    wrong: Row

    @property
    def accuracy(self) -> float:
        """Chance that one sample is right."""
        return math.prod(self.sound)

    @property
    def answers(self) -> tuple[float, ...]:
        """Probabilities of the answers of one sample, the right one first."""
        return (self.accuracy, *((1 - self.accuracy) * share for share in self.wrong))


@dataclass(frozen=True, kw_only=True)
class World(SmallLM):
    seed: int = 0  # which problems
    step_accuracy: float = 0.85  # chance of a sound first step, on a problem of middling difficulty
    spread: float = 1.0  # standard deviation of a problem's difficulty, in logits of its steps' accuracy
    step_spread: float = 1.0  # the same of a step within its problem: what the model gets wrong although it is sure
    decay: float = 0.0  # logits of accuracy that each further step loses
    depth: tuple[int, int] = (4, 4)  # least and most steps of a problem, uniform between
    num_wrong: int = 8  # wrong answers
    popularity: float = 1.0  # Zipf exponent of wrong answers: 0 equally popular, large: one mistake that all make
    step_tokens: int = 16  # tokens of a step, its line end included
    num_wordings: int = 64  # ways to say a step; 1 makes equal paths frequent
    is_telling: bool = False  # the right answer is said in one way, so likelihood tells it; else in as many, alike, as there are wrong ones
    wording_skew: float = 1.0  # Zipf exponent of wordings: likelihood that tells nothing about being right

    def __post_init__(self) -> None:
        rules = (
            ("step_accuracy", 0 < self.step_accuracy < 1, "strictly between 0 and 1"),
            ("depth", 1 <= self.depth[0] <= self.depth[1], "(least, most) with 1 <= least <= most"),
            ("num_wrong", self.num_wrong >= 1, "at least 1"),
            ("step_tokens", self.step_tokens >= 2, "at least 2: a word and a line end"),
            ("num_wordings", self.num_wordings >= 1, "at least 1"),
            ("spread", self.spread >= 0, "at least 0"),
            ("step_spread", self.step_spread >= 0, "at least 0"),
        )
        for name, ok, rule in rules:
            if not ok:
                raise BadField(f"world {name}={getattr(self, name)}: must be {rule}")

    @cached_property
    def alphabet(self) -> Sequence[str]:  # type: ignore[override]
        words = [f"{kind}{i}" for kind in "sx" for i in range(self.num_wordings)]
        return (".", "\n", *words, *("#" + "0" * (i + 1) for i in range(self.num_right)), *(f"#{j + 1}" for j in range(self.num_wrong)))

    @property
    def key(self) -> int:
        return hash_seed("world", self)

    @cached_property
    def wordings(self) -> Row:
        """Their shares, the most frequent first."""
        return zipf(self.num_wordings, self.wording_skew)

    @property
    def num_right(self) -> int:
        """Ways to say the right answer."""
        return 1 if self.is_telling else self.num_wrong

    @property
    def first_answer(self) -> int:
        return FIRST_WORDING + 2 * self.num_wordings

    def answers_of(self, place: "Place") -> tuple[int, Row]:
        """(first token, shares) of the answers at a place where one is given."""
        if place.kind == "wrong answer":
            return self.first_answer + self.num_right, place.wrong
        return self.first_answer, (1.0,) if self.is_telling else place.wrong

    def prompt(self, index: int) -> Prompt:
        """Problem `index`; an answer always fits."""
        size = self.problem(index)
        max_tokens = len(size.sound) * self.step_tokens + 2
        return Prompt(messages=(("user", f"problem {index}"),), max_tokens=max_tokens, answers=SimulatedAnswer())

    def problem(self, index: int) -> Problem:
        return drawn_problem(self, index)

    def problem_of(self, prompt: Prompt) -> Problem:
        """The problem that the prompt names last; problem 0 where it names none."""
        return self.problem(named_problem(prompt.messages))

    def encode(self, text: str) -> list[int | None]:
        return [None]  # it can say its own words only

    def row(self, last: int | None) -> Row:
        return (DEAD,) * (self.end + 1)

    def place(self, problem: Problem, tokens: Sequence[int]) -> "Place":
        """What may come after `tokens`."""
        step, offset = divmod(len(tokens), self.step_tokens)
        if step < len(problem.sound):
            kind = "word" if offset == 0 else "line end" if offset == self.step_tokens - 1 else "filler"
            return Place(kind, problem.sound[step] if kind == "word" else 0.0)
        if offset > 0:
            return Place("end")
        return Place("answer" if self.is_sound(tokens) else "wrong answer", 0.0, problem.wrong)

    def is_sound(self, tokens: Sequence[int]) -> bool:
        """Whether no step among `tokens` is a slip."""
        first_slip = FIRST_WORDING + self.num_wordings
        return all(token < first_slip for token in tokens[:: self.step_tokens] if token < self.first_answer)

    def log_p(self, prefix: Prefix) -> Row:
        return place_row(self, self.place(self.problem_of(prefix.prompt), prefix.tokens))


@dataclass(frozen=True)
class Place:
    """What comes next: "word", "filler", "line end", "answer", "wrong answer" or "end"."""

    kind: str
    sound: float = 0.0  # of a word
    wrong: Row = ()  # of an answer: shares of what may be said


@lru_cache(maxsize=100_000)
def named_problem(messages: tuple[tuple[str, str], ...]) -> int:
    found = NAMED.findall(messages[-1][1]) or NAMED.findall(" ".join(text for _, text in messages))
    return int(found[-1]) if found else 0


@lru_cache(maxsize=100_000)
def drawn_problem(world: World, index: int) -> Problem:
    draw = random.Random(hash_seed("problem", world.seed, index))
    ease = math.log(world.step_accuracy / (1 - world.step_accuracy)) - world.spread * draw.gauss(0, 1)
    hard = [world.decay * t + world.step_spread * draw.gauss(0, 1) for t in range(draw.randint(*world.depth))]
    sound = tuple(1 / (1 + math.exp(h - ease)) for h in hard)
    return Problem(index, sound, zipf(world.num_wrong, world.popularity))


def zipf(num: int, exponent: float) -> Row:
    shares = [(j + 1) ** -exponent for j in range(num)]
    return tuple(share / math.fsum(shares) for share in shares)


@lru_cache(maxsize=10_000)
def place_row(world: World, place: Place) -> Row:
    """Log-probabilities [V + 1] of the next token at `place`."""
    row = [DEAD] * (world.end + 1)
    if place.kind == "word":
        for i, share in enumerate(world.wordings):
            row[FIRST_WORDING + i] = math.log(place.sound * share)
            row[FIRST_WORDING + world.num_wordings + i] = math.log((1 - place.sound) * share)
    elif place.kind.endswith("answer"):
        first, shares = world.answers_of(place)
        for j, share in enumerate(shares):
            row[first + j] = math.log(share)
    else:
        row[{"filler": FILLER, "line end": NEWLINE, "end": world.end}[place.kind]] = 0.0
    return tuple(row)


class Simulator(ToyProcess):
    """A World as a process, fast: one step answers every ask, and the rest of a step's tokens come at once."""

    def __init__(self, world: World) -> None:
        super().__init__(world, context_len=1 << 20)
        self.world = world
        self.known: set[str] = set()  # prompts that were computed
        self.rest = [FILLER] * (world.step_tokens - 2) + [NEWLINE]  # of a step, after its word
        self.rest_texts = [world.alphabet[token] for token in self.rest]
        self.filler_certainty = certainty_at(world, Place("filler"))

    def _read(self, job: Job, tokens: tuple[int, ...], num_drawn: int = 0, first: int | None = None) -> None:
        """Books one reading of the prompt by whoever comes first, and nothing for prefixes that were computed before."""
        text = rendered(job.prefix.prompt)
        read = len(text) + 1 + len(tokens)
        computed = 1 if text in self.known else len(text) + 1
        self.known.add(text)
        self._pay(job, Cost(prompt_tokens=computed, reused_tokens=read - computed, generated_tokens=num_drawn, flops=float(computed)))

    def _extend(self, job: Job, ask: Extend) -> Extension | None:
        is_plain = not ask.prefix.prompt.stop and ask.prefix.prompt.form is None and ask.logprobs is None and set(ask.until) <= {"\n"}
        is_plain = is_plain and not (ask.drift or ask.forced or ask.probes)
        if is_plain and is_tempered(ask.sampling) and job.limit > 0:
            return self._extend_at_once(job, ask)
        while (answer := super()._extend(job, ask)) is None:
            pass
        return answer

    def _extend_at_once(self, job: Job, ask: Extend) -> Extension:
        """As the slow path answers, token by token, without listing what could have come instead."""
        before, prompt, size = ask.prefix, ask.prefix.prompt, self.world.step_tokens
        problem = self.world.problem_of(prompt)
        grown, end = Grown(list(before.tokens), [before.text], before.log_p, before.log_q), size * len(problem.sound)
        last, finish = min(len(before.tokens) + job.limit, prompt.max_tokens), "limit"
        while finish == "limit" and (at := len(grown.tokens)) < last:
            offset = at % size
            if at > end:
                grown.add(self.world.end, "", 0.0, 0.0)
                finish = "stop"
            elif at == end or offset == 0:
                grown.add(*self._drawn_at(self.world.place(problem, grown.tokens), ask, at))
            else:
                until = min(size, offset + last - at)
                grown.tokens += self.rest[offset - 1 : until - 1]
                grown.texts += self.rest_texts[offset - 1 : until - 1]
                finish = "until" if until == size and ask.until else finish
        if finish != "stop" and len(grown.tokens) >= prompt.max_tokens:
            finish = "length"
        certainty = before.certainty + (self._certainty(problem, grown.tokens, len(before.tokens)) if ask.certainty else 0.0)
        job.prefix = replace(
            before, tokens=tuple(grown.tokens), text="".join(grown.texts), log_p=grown.log_p, log_q=grown.log_q, certainty=certainty,
            finish=finish if finish in ("stop", "length") else None,
        )  # fmt: skip
        self._read(job, before.tokens, num_drawn=len(grown.tokens) - len(before.tokens))
        return self._finished(job, "budget" if finish == "limit" and job.is_capped else finish)

    def _drawn_at(self, place: "Place", ask: Extend, position: int) -> tuple[int, str, float, float]:
        """(token, text, log_p, log_q) of a word or an answer."""
        world, heat = self.world, ask.sampling.temperature
        first, wordings = FIRST_WORDING, world.wordings
        classes: Row = (place.sound, 1 - place.sound)
        if place.kind != "word":
            (first, classes), wordings = world.answers_of(place), (1.0,)
        chosen, wording, log_q = max(range(len(classes)), key=lambda i: classes[i]), 0, 0.0
        if heat > 0:
            shares, ways = tempered(classes, heat), tempered(wordings, heat)
            chosen, left = fallen(shares, hash_seed("toy", ask.seed, position) / 2**63)
            wording, _ = fallen(ways, left / shares[chosen])
            log_q = math.log(shares[chosen] * ways[wording])
        token = first + chosen * len(wordings) + wording
        return token, world.alphabet[token], math.log(classes[chosen] * wordings[wording]), log_q

    def _certainty(self, problem: Problem, tokens: Sequence[int], start: int) -> float:
        """Sum over tokens from `start` on; all that are no word and no answer are sure of themselves alike."""
        size, num_steps = self.world.step_tokens, len(problem.sound)
        drawn = [at for at in range(-(-start // size) * size, min(len(tokens), num_steps * size + 1), size)]
        places = [self.world.place(problem, tokens[:at]) for at in drawn]
        return math.fsum(certainty_at(self.world, place) for place in places) + self.filler_certainty * (len(tokens) - start - len(drawn))


@dataclass
class Grown:
    """An answer under way."""

    tokens: list[int]
    texts: list[str]
    log_p: float
    log_q: float

    def add(self, token: int, text: str, log_p: float, log_q: float) -> None:
        self.tokens.append(token)
        self.texts.append(text)
        self.log_p += log_p
        self.log_q += log_q


def is_tempered(sampling: Sampling) -> bool:
    """Whether a temperature is all that shapes its draws."""
    return sampling == Sampling(temperature=sampling.temperature)


def fallen(shares: Row, probe: float) -> tuple[int, float]:
    """(the cell of [0, 1) cut into `shares` that `probe` falls into, how far into it)."""
    ends = cumulated(shares)
    cell = min(bisect.bisect_right(ends, probe), len(shares) - 1)
    return cell, probe - (ends[cell - 1] if cell else 0.0)


@lru_cache(maxsize=10_000)
def cumulated(shares: Row) -> Row:
    return tuple(itertools.accumulate(shares))


@lru_cache(maxsize=10_000)
def tempered(shares: Row, heat: float) -> Row:
    if heat == 1:
        return shares
    powers = [share ** (1 / heat) for share in shares]
    return tuple(p / math.fsum(powers) for p in powers)


@lru_cache(maxsize=10_000)
def certainty_at(world: World, place: Place) -> float:
    return self_certainty(place_row(world, place))


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a strategy made of one problem."""

    is_right: bool  # its answer
    has_right: bool  # any candidate
    tokens: int  # generated, one for each Expand, and a verifier's
    outcome: Outcome


def play(strategy: Strategy, process: ToyProcess, problem: int, *, seed: int = 0, max_tokens: int | None = None) -> Played:
    """One strategy on one problem of the process's world. Once `max_tokens` are generated, asks get their free answers."""
    world = process.lm
    if not isinstance(world, World):
        raise BadField(f"play needs a process over a World, got one over {type(world).__name__}")
    running = strategy.run(world.prompt(problem), TorchRng(hash_seed("play", seed, problem)))
    spent = 0
    answers = None
    while True:
        try:
            turn: Turn = next(running) if answers is None else running.send(answers)
        except StopIteration as stop:
            candidates = stop.value.candidates
            has_right = any(c.answer == "0" for c in candidates)
            return Played(is_right=bool(candidates) and candidates[0].answer == "0", has_right=has_right, tokens=spent, outcome=stop.value)
        is_spent = max_tokens is not None and spent >= max_tokens
        answers = tuple(map(spent_answer, turn.asks)) if is_spent else answer_turn(turn.asks, process)
        spent += sum(answer.cost.generated_tokens + answer.cost.verifier_tokens for answer in answers)
        spent += sum(isinstance(ask, Expand) and not is_spent for ask in turn.asks)


def play_many(strategy: Strategy, world: World, num: int, *, seed: int = 0, max_tokens: int | None = None) -> Iterator[Played]:
    """The strategy on problems 0 to num - 1."""
    process = Simulator(world)
    return (play(strategy, process, index, seed=seed, max_tokens=max_tokens) for index in range(num))
