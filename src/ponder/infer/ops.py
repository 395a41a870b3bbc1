"""Ops over particles, the kernels that let a language model be what they move, and what several strategies share.

An op's law is proper weighting: for every f, the expectation of f under the returned particles (normaliser included) is
that of f under the stated measure. Ops that break it say so in `guarantee`, and `>>` hands on the weakest.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Expansion, Extend, Judge, Prefix, Prompt, Sampling, Turn, Verdict, candidate
from ponder.core.errors import BadField, BadWeight, DeadParticles
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Batch, Particles, State, uniform_particles
from ponder.core.rng import Rng
from ponder.core.roles import Kernel, Resampler, Verifier
from ponder.core.votes import best_first
from ponder.core.weights import check_weights, ess, normalize
from ponder.infer.compose import Composable, PureOp, Running


def start(item: object) -> Particles:
    """One particle of weight 1 at `item`."""
    return uniform_particles(Batch((item,)))


@dataclass(frozen=True)
class Spawn(PureOp):
    """Every particle becomes `num` equal copies. The measure is unchanged."""

    num: int

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"spawn num={self.num}: must be at least 1")

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        copies = torch.arange(len(particles)).repeat_interleave(self.num)
        return replace(particles, state=particles.state.select(copies), log_w=particles.log_w[copies])


@dataclass(frozen=True)
class Advance(Composable):
    """Every particle takes one step of `kernel`, its increments multiply the weights. Dead particles ask for nothing."""

    kernel: Kernel

    @property
    def guarantee(self) -> Guarantee:
        return self.kernel.guarantee

    def run(self, particles: Particles, rng: Rng) -> Running:
        is_live = check_weights(particles.log_w) > float("-inf")
        live = torch.nonzero(is_live)[:, 0]
        state, log_g = yield from self.kernel(particles.state.select(live), rng)
        home = (is_live.cumsum(0) - 1).clamp_min(0)  # a dead one holds a live one's state from here on: its weight stays zero
        grown = marked(replace(particles, state=state.select(home)), self.guarantee)
        return grown.reweighted(torch.where(is_live, log_g[home], 0.0))


@dataclass(frozen=True)
class Reweight(PureOp):
    """Multiplies the weights: d mu' = exp(log_potential) d mu."""

    log_potential: Callable[[State], Tensor]  # state -> [N] log factors, -inf kills

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        return particles.reweighted(self.log_potential(particles.state))


@dataclass(frozen=True)
class Resample(PureOp):
    """Picks `num` particles in proportion to their weights, which become equal; log_z keeps the total.

    Does so when the effective sample size is below `ess_below` times the number of particles. A particle that was not
    resampled carries its weight on. Raises DeadParticles when all are dead.
    """

    resampler: Resampler
    ess_below: float | None = 0.5  # share of N; None resamples always
    num: int | None = None  # particles afterwards; None keeps their number

    guarantee = Guarantee.UNBIASED

    def __post_init__(self) -> None:
        if self.ess_below is not None and not 0 <= self.ess_below <= 1:
            raise BadField(f"resample ess_below={self.ess_below}: must be a share of the particles in [0, 1], or None to resample always")

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        size = ess(particles.log_w)
        seen = marked(replace(particles, ess=(*particles.ess, size)), self.guarantee)
        if self.ess_below is not None and size >= self.ess_below * len(particles):
            return seen
        ancestors = self.resampler(particles.log_w, self.num or len(particles), rng)
        return replace(
            seen,
            state=particles.state.select(ancestors),
            log_w=torch.zeros(len(ancestors), dtype=torch.float64),
            log_z=particles.log_evidence,
            ancestors=(*particles.ancestors, tuple(ancestors.tolist())),
        )


@dataclass(frozen=True)
class Move(Composable):
    """`kernel`, `times` times; it must leave the current target unchanged. Weights stay. Raises BadWeight if it wants others."""

    kernel: Kernel  # increments all zero; its guarantee says how exactly it keeps the target
    times: int = 1

    @property
    def guarantee(self) -> Guarantee:
        return self.kernel.guarantee

    def run(self, particles: Particles, rng: Rng) -> Running:
        for i in range(self.times):
            state, log_g = yield from self.kernel(particles.state, rng.fork(i))
            if bool((log_g != 0).any()):
                raise BadWeight("a move kernel returned log-weight increments: it does not keep its target; use Advance")
            particles = marked(replace(particles, state=state), self.guarantee)
        return particles


@dataclass(frozen=True)
class Condition(PureOp):
    """Drops every particle that does not fulfil `holds`: mu restricted to it. Raises DeadParticles when none is left."""

    holds: Callable[[State], Tensor]  # state -> bool [N]

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        return kept(particles, torch.nonzero(self.holds(particles.state))[:, 0])


@dataclass(frozen=True)
class Thin(PureOp):
    """Drops light particles without bias: kept with probability min(1, w / c), where c = share x mean weight, and then w = max(w, c)."""

    share: float = 0.5  # in (0, 1]: the heaviest particle is always kept

    guarantee = Guarantee.UNBIASED

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadField(f"thin share={self.share}: must be in (0, 1]")

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        chance = (normalize(particles.log_w) * len(particles) / self.share).clamp_max(1.0)
        stays = rng.uniform([p[None] for p in chance]) < chance
        lifted = replace(particles, log_w=particles.log_w - chance.log())
        return marked(kept(lifted, torch.nonzero(stays)[:, 0]), self.guarantee)


@dataclass(frozen=True)
class Top(PureOp):
    """Keeps the `num` heaviest particles as they are; equal ones in their order. What beam search does."""

    num: int

    guarantee = Guarantee.BIASED

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        order = torch.sort(check_weights(particles.log_w), descending=True, stable=True).indices
        return marked(kept(particles, order[: self.num]), self.guarantee)


@dataclass(frozen=True)
class Draw(PureOp):
    """One particle, drawn in proportion to its weight; it stands for all: weight 1, log_z the evidence."""

    guarantee = Guarantee.UNBIASED

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        return alone(particles, rng.categorical(check_weights(particles.log_w)[None]), self.guarantee)


@dataclass(frozen=True)
class Heaviest(PureOp):
    """The particle with the largest weight, the first among equals; log_z the evidence."""

    guarantee = Guarantee.BIASED

    def apply(self, particles: Particles, rng: Rng) -> Particles:
        return alone(particles, check_weights(particles.log_w).argmax()[None], self.guarantee)


def mean(particles: Particles, values: Tensor) -> Tensor:
    """Weighted mean over particles of values [N, ...] -> [...]; consistent, biased by O(1/N)."""
    return torch.tensordot(normalize(particles.log_w), values.double(), dims=1)


def marked(particles: Particles, guarantee: Guarantee) -> Particles:
    return replace(particles, guarantee=weakest((particles.guarantee, guarantee)))


def kept(particles: Particles, indices: Tensor) -> Particles:
    """Only those particles, each with the mass that it had."""
    if len(indices) == 0:
        raise DeadParticles(f"none of {len(particles)} particles is left; weaken the condition or start more particles")
    share = math.log(len(indices) / len(particles))  # the measure is a mean over fewer
    return replace(particles, state=particles.state.select(indices), log_w=particles.log_w[indices], log_z=particles.log_z + share)


def alone(particles: Particles, index: Tensor, guarantee: Guarantee) -> Particles:
    one = replace(particles, state=particles.state.select(index), log_w=torch.zeros(1, dtype=torch.float64), log_z=particles.log_evidence)
    return marked(one, guarantee)


@dataclass(frozen=True, kw_only=True)
class ExtendStep:
    """Kernel on Batch[Prefix]: every unfinished prefix grows by one step. Finished ones stay as they are, with increment 0.

    The target is the distribution of `sampling`; with is_corrected it is the model's own (temperature 1), and
    increments are log_p - log_q of the new tokens.
    """

    until: tuple[str, ...] = ()  # step separators; none: to the end of the answer
    max_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=Sampling)  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q; refuses truncated sampling, which no weight can correct
    certainty: bool = False  # fill Prefix.certainty

    def __post_init__(self) -> None:
        s = self.sampling
        if self.is_corrected and (s.temperature == 0 or s.top_k is not None or s.top_p < 1 or s.min_p > 0):
            raise BadField(f"is_corrected with {s}: truncated sampling leaves out tokens that the model would draw; use temperature alone")

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.UNBIASED if self.is_corrected else Guarantee.EXACT

    @property
    def needs(self) -> tuple[str, ...]:
        return ("log_p", "log_q") if self.is_corrected else ()

    def __call__(self, state: Batch[Prefix], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Prefix], Tensor]]:
        asks = {i: self.ask(prefix, rng.seed(i)) for i, prefix in enumerate(state) if not prefix.is_final}
        answers = (yield Turn(tuple(asks.values()))) if asks else ()
        grown = list(state)
        log_g = torch.zeros(len(state), dtype=torch.float64)
        for i, answer in zip(asks, answers, strict=True):
            old, grown[i] = grown[i], answer.prefix
            if self.is_corrected:
                log_g[i] = (answer.prefix.log_p - old.log_p) - (answer.prefix.log_q - old.log_q)
        return Batch(tuple(grown)), log_g

    def ask(self, prefix: Prefix, seed: int) -> Extend:
        return Extend(
            prefix=prefix, seed=seed, max_tokens=self.max_tokens, until=self.until, sampling=self.sampling, certainty=self.certainty
        )  # fmt: skip


@dataclass(frozen=True)
class MeanProbability:
    """Verifier: geometric mean of the token probabilities, from the model itself. What there is without a reward model."""

    name: str = "mean_probability"

    needs = ("log_p",)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(min(1.0, math.exp(c.mean_log_p)), "probability") if c.tokens else ABSTAIN for c in candidates)


CLIP = 1e-7  # keeps a verdict of 0 or 1 from deciding alone


def log_prob(verdict: Verdict) -> float:
    """log r; a score, which has no unit, counts as a log factor."""
    value = verdict.value or 0.0
    return math.log(min(max(value, CLIP), 1.0)) if verdict.kind == "probability" else value


def log_odds(verdict: Verdict) -> float:
    """log r / (1 - r); a score counts as a logit."""
    value = verdict.value or 0.0
    if verdict.kind == "log_p":
        value = math.exp(min(value, 0.0))
    elif verdict.kind != "probability":
        return value
    r = min(max(value, CLIP), 1 - CLIP)
    return math.log(r) - math.log1p(-r)


@dataclass(frozen=True)
class Judged:
    """A prefix and the last opinion about it."""

    prefix: Prefix
    log_r: float = 0.0  # g of the last verdict; 0 before the first
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedStep:
    """Kernel on Batch[Judged]: one step of `extend`, then a verdict on what grew. An abstention leaves weight and opinion."""

    extend: ExtendStep
    verifier: Verifier  # judges partial answers
    potential: Callable[[Verdict], float]  # verdict -> log factor: log_prob or log_odds
    is_ratio: bool  # factors telescope, so that the last verdict alone decides

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Judged], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Judged], Tensor]]:
        grown, log_g = yield from self.extend(Batch(tuple(item.prefix for item in state)), rng)
        items = [replace(old, prefix=new) for old, new in zip(state, grown, strict=True)]
        new = [i for i, old in enumerate(state) if items[i].prefix.tokens != old.prefix.tokens]
        if not new:
            return Batch(tuple(items)), log_g
        asked = tuple(candidate(items[i].prefix) for i in new)
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=items[0].prefix.prompt, candidates=asked),), best_first(asked))
        for i, verdict in zip(new, told.verdicts, strict=True):
            if verdict.value is not None:
                log_r = self.potential(verdict)
                log_g[i] += log_r - (items[i].log_r if self.is_ratio else 0.0)
                items[i] = replace(items[i], log_r=log_r, verdict=verdict)
        return Batch(tuple(items)), log_g


def sampled(
    prompt: Prompt, num: int, sampling: Sampling, rng: Rng, *, since: int = 0, best: tuple[Candidate, ...] = ()
) -> Generator[Turn, Sequence[Answer], tuple[Candidate, ...]]:
    """`num` whole answers in one turn, which shows `best`. Answer i, counted from `since`, comes from rng.seed(i), so
    strategies that draw alike share samples.

    Certainty is always asked for: it costs one mean over the vocabulary, and asks that differ by it would not be shared.
    """
    numbers = range(since, since + num)
    asks = (Extend(prefix=Prefix(prompt), seed=rng.seed(i), sampling=sampling, certainty=True) for i in numbers)
    answers = yield Turn(tuple(asks), best)
    return tuple(candidate(answer.prefix) for answer in answers)


def normalized_score(prefix: Prefix, power: float) -> float:
    """log_p / len^power."""
    return prefix.log_p / max(1, len(prefix.tokens)) ** power


def split_beams(ranked: Sequence[Prefix], width: int) -> tuple[list[Prefix], list[Prefix]]:
    """(finished, open) beams of the next step: finished ones among the first `width`, and the first `width` open ones."""
    return [p for p in ranked[:width] if p.is_final], [p for p in ranked if not p.is_final][:width]


def is_settled(done: Sequence[Prefix], beams: Sequence[Prefix], width: int, power: float) -> bool:
    """Whether no open beam can enter the `width` best finished ones any more: log_p only falls."""
    if len(done) < width or not beams:
        return not beams
    bar = sorted((normalized_score(p, power) for p in done), reverse=True)[width - 1]
    return all(p.log_p / p.prompt.max_tokens**power <= bar for p in beams)


def ranked_candidates(prefixes: Sequence[Prefix], power: float) -> tuple[Candidate, ...]:
    """Whole ones first, then those cut off, each by normalised score."""
    ranked = sorted(prefixes, key=lambda p: (p.finish not in (None, "budget"), bool(p.tokens), normalized_score(p, power)), reverse=True)
    return tuple(candidate(p, score=normalized_score(p, power)) for p in ranked)


def unexpanded(beams: Sequence[Prefix], told: Sequence[Expansion]) -> list[Prefix]:
    """Beams that got no children, because the budget is spent, as what they are: cut off."""
    return [replace(p, finish="budget") for p, answer in zip(beams, told, strict=True) if not answer.children]
