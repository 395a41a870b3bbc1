"""Conditional SMC: a sweep of particles one of which is held to a given trail. What Markov chains over whole answers move by.

A sweep is a Markov kernel on trails. It leaves  pi(x) ~ q(x) prod_t exp(log_c_t(x) + power log_g_t(x))  unchanged, whatever the
number of particles, because the held particle is weighed at every step t with its own factors of that same step t.
Andrieu, Doucet & Holenstein 2010; reversible: Chopin & Singh 2015, arXiv:1304.1887.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Extend, Prefix, Prompt, Turn, Verdict
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, as_log_weights, uniform_particles
from ponder.core.rng import Rng
from ponder.core.weights import check_weights
from ponder.infer.compose import Running, showing
from ponder.infer.ops import Advance, ExtendStep, Judged, JudgedStep, Resample
from ponder.infer.picks import is_open, standings


@dataclass(frozen=True)
class Trail:
    """A judged prefix with how it came about: what stood after each step, and that step's two log factors."""

    items: tuple[Judged, ...]  # the start, then one per step
    log_c: tuple[float, ...] = ()  # per step: log p - log q of its tokens where the kernel corrects, else 0
    log_g: tuple[float, ...] = ()  # per step: the verdict's factor, at power 1

    @property
    def prefix(self) -> Prefix:
        return self.items[-1].prefix

    @property
    def log_r(self) -> float:
        return self.items[-1].log_r

    @property
    def verdict(self) -> Verdict | None:
        return self.items[-1].verdict

    @property
    def num_steps(self) -> int:
        return len(self.log_g)

    @property
    def score(self) -> float:
        """Sum of all its verdicts' log factors."""
        return math.fsum(self.log_g)

    def log_factor(self, at: int, power: float) -> float:
        """What step `at` multiplies the weight by; 0 where the trail has ended."""
        return self.log_c[at] + power * self.log_g[at] if at < self.num_steps else 0.0

    def log_density(self, at: int, power: float) -> float:
        """log of what its steps from `at` on add to the target: proposal times factors."""
        drawn = self.prefix.log_q - self.until(at).prefix.log_q
        return drawn + math.fsum(self.log_factor(t, power) for t in range(at, self.num_steps))

    def until(self, num_steps: int) -> "Trail":
        """Its first `num_steps` steps; all when it has fewer."""
        return Trail(self.items[: num_steps + 1], self.log_c[:num_steps], self.log_g[:num_steps])


@dataclass(frozen=True)
class TrailStep:
    """Kernel on Batch[Trail]: one step of `step`, kept in the trail; verdicts count with exponent `power`."""

    step: JudgedStep
    power: float = 1.0

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Trail], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Trail], Tensor]]:
        grown, total = yield from self.step(Batch(tuple(trail.items[-1] for trail in state)), rng)
        trails = tuple(self.longer(old, new, log_w) for old, new, log_w in zip(state, grown, total.tolist(), strict=True))
        return Batch(trails), as_log_weights([new.log_factor(old.num_steps, self.power) for old, new in zip(state, trails)])

    def longer(self, old: Trail, new: Judged, log_w: float) -> Trail:
        """A finished trail stays as it is."""
        if old.prefix.is_final:
            return old
        before, after = old.prefix, new.prefix
        log_c = (after.log_p - before.log_p) - (after.log_q - before.log_q) if self.step.extend.is_corrected else 0.0
        return Trail((*old.items, new), (*old.log_c, log_c), (*old.log_g, log_w - log_c))


@dataclass(frozen=True, kw_only=True)
class ForcedStep(ExtendStep):
    """A step whose tokens are given."""

    new_tokens: tuple[int, ...]

    def ask(self, prefix: Prefix, seed: int) -> Extend:
        return replace(super().ask(prefix, seed), forced=(*prefix.tokens, *self.new_tokens), max_tokens=len(self.new_tokens))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`num` particles from the start to their ends, resampled multinomially. With a reference, particle 0 is that trail:
    it is never replaced, but others may descend from what it was at the time. Rewired, its own past is drawn anew at every
    resampling: particle i becomes it in proportion to w_i times the density of the reference's remaining steps after i
    (ancestor sampling: Lindsten, Jordan & Schon 2014, arXiv:1401.0604); still invariant, no longer reversible."""

    num: int
    step: JudgedStep
    power: float = 1.0  # exponent of every verdict's factor
    ess_below: float | None = None  # resample when the effective sample size is below this share; None: before every step
    is_rewired: bool = False

    def run(self, prompt: Prompt, reference: Trail | None, rng: Rng) -> Running:
        """Particles on Batch[Trail]; their evidence is unbiased only without a reference. All have ended, but for a reference's
        sweep that the budget cuts: it ends at once, and its particles are of no use."""
        particles = uniform_particles(Batch((Trail((Judged(Prefix(prompt)),)),) * self.num))
        for at in itertools.count():
            if not is_open(particles) or (reference is not None and is_cut(particles)):
                return particles
            if at > 0:
                before, particles = particles, self.resampled(particles, reference is not None, rng)
                if self.is_rewired and reference is not None and len(particles.ancestors) > len(before.ancestors):
                    reference = yield from self.rewired(before, reference, at, rng)
            particles = yield from showing(standings(particles), self.advanced(particles, reference, at, rng.fork(at)))
        raise AssertionError("count() does not end")

    def resampled(self, particles: Particles, is_held: bool, rng: Rng) -> Particles:
        def resampler(log_w: Tensor, num: int, rng: Rng) -> Tensor:
            drawn = rng.categorical(log_w.expand(num - is_held, -1))
            return torch.cat([torch.zeros(int(is_held), dtype=torch.int64), drawn])

        return Resample(resampler, self.ess_below).apply(particles, rng)

    def rewired(self, particles: Particles, reference: Trail, at: int, rng: Rng) -> Generator[Turn, Sequence[Answer], Trail]:
        """The reference's steps from `at` on, after the past of a particle that is drawn for it."""
        grafts = yield from self.grafts(particles, reference, at, rng.fork(at, 1))
        log_v = [log_w + grafts[i].log_density(at, self.power) if i in grafts else -math.inf for i, log_w in enumerate(particles.log_w.tolist())]
        return grafts[int(rng.categorical(as_log_weights(log_v)[None])[0])]

    def grafts(self, particles: Particles, reference: Trail, at: int, rng: Rng) -> Generator[Turn, Sequence[Answer], dict[int, Trail]]:
        """index -> that particle gone on as the reference did; only those with which the process could have done so."""
        trails = list(enumerate(zip(particles.state, particles.log_w.tolist())))[1:]  # type: ignore[call-overload]
        grown = {i: trail for i, (trail, log_w) in trails if log_w > -math.inf and not trail.prefix.is_final}
        for t in range(at, reference.num_steps):
            old, new = reference.items[t].prefix, reference.items[t + 1].prefix
            tokens, e = new.tokens[len(old.tokens) :], self.step.extend
            forced = ForcedStep(until=e.until, sampling=e.sampling, is_corrected=e.is_corrected, certainty=e.certainty, new_tokens=tokens)
            kernel = TrailStep(replace(self.step, extend=forced), self.power)
            state, _ = yield from showing(standings(particles), kernel(Batch(tuple(grown.values())), rng.fork(t)))  # type: ignore[arg-type]
            after = zip(grown.items(), state)
            grown = {i: x for (i, was), x in after if x.prefix.tokens == (*was.prefix.tokens, *tokens) and x.prefix.is_final == new.is_final}
        return {0: reference, **(grown if at < reference.num_steps else {})}

    def advanced(self, particles: Particles, reference: Trail | None, at: int, rng: Rng) -> Running:
        kernel = Advance(TrailStep(self.step, self.power))
        if reference is None:
            return (yield from kernel.run(particles, rng))
        held, log_g = self.held(reference, at)
        others = replace(particles, state=particles.state.select(torch.arange(1, len(particles))), log_w=particles.log_w[1:])
        if bool((others.log_w > -math.inf).any()):
            others = yield from kernel.run(others, rng)
        state = Batch((held, *others.state))  # type: ignore[misc]
        return replace(particles, state=state, log_w=torch.cat([particles.log_w[:1] + log_g, others.log_w]))

    def held(self, reference: Trail, at: int) -> tuple[Trail, float]:
        """What the reference was after step `at`, and that step's log factor."""
        return reference.until(at + 1), reference.log_factor(at, self.power)


def drawn_trail(particles: Particles, rng: Rng) -> Trail:
    """One trail, in proportion to its weight."""
    index = int(rng.categorical(check_weights(particles.log_w)[None])[0])
    return list(particles.state)[index]  # type: ignore[call-overload, no-any-return]


def is_cut(particles: Particles) -> bool:
    """Whether the budget ended in this sweep: its weights are not those of whole answers."""
    return any(trail.prefix.finish == "budget" for trail in particles.state)  # type: ignore[attr-defined]
