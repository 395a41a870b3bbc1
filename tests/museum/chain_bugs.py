"""Bugs of conditional, tempered and annealed particles, each rebuilt small, and the laws that tell them from ours."""

import math
from dataclasses import dataclass, replace

import torch

from infer.chains import TINY, joint, moving, stepping, tempering, trails_of
from ponder.core.asks import Prefix
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, as_log_weights
from ponder.infer.conditional import Sweep
from ponder.infer.entropic_filter import AnnealedResample
from ponder.infer.ops import Judged, Resample
from ponder.infer.parallel_tempering import exchanged
from ponder.infer.resample.systematic import systematic
from ponder.testing import laws_chain, laws_op
from ponder.testing.laws_strategy import LM


def law_keeps_its_target(kind):
    """The target is that of the right sweep."""
    step = stepping(is_ratio=False)
    laws_chain.law_chain_keeps(trails_of(Sweep(num=2, step=step), TINY), moving(kind(num=2, step=step), TINY))


@dataclass(frozen=True, kw_only=True)
class FinalWeight(Sweep):
    """The reference counts as stopped from the start: its final verdict competes with the others' verdicts of the step."""

    def held(self, reference, at):
        return reference.until(at + 1), reference.log_factor(reference.num_steps - 1, self.power)


@dataclass(frozen=True, kw_only=True)
class OneStepOff(Sweep):
    """The reference's verdict is read at the next step's index."""

    def held(self, reference, at):
        return reference.until(at + 1), reference.log_factor(at + 1, self.power)


@dataclass(frozen=True, kw_only=True)
class ForksTheWhole(Sweep):
    """Whoever descends from the reference gets its whole trail, not what it was at the time."""

    def held(self, reference, at):
        return reference, reference.log_factor(at, self.power)


@dataclass(frozen=True, kw_only=True)
class LosesTheReference(Sweep):
    """Holds the reference in the first step alone: from then on it is a particle like any other, and may go."""

    def advanced(self, particles, reference, at, rng):
        return super().advanced(particles, reference if at == 0 else None, at, rng)

    def resampled(self, particles, is_held, rng):
        return super().resampled(particles, False, rng)


@dataclass(frozen=True, kw_only=True)
class RewiresByWeight(Sweep):
    """Draws the reference's new past by weight alone, as if what comes after it did not care."""

    is_rewired: bool = True

    def rewired(self, particles, reference, at, rng):
        grafts = yield from self.grafts(particles, reference, at, rng)
        log_v = as_log_weights([w if i in grafts else -math.inf for i, w in enumerate(particles.log_w.tolist())])
        return grafts[int(rng.categorical(log_v[None])[0])]


@dataclass(frozen=True, kw_only=True)
class NeverForksTheReference(Sweep):
    """Nobody may descend from the reference."""

    def resampled(self, particles, is_held, rng):
        hide = torch.tensor([float("-inf") if is_held else 0.0] + [0.0] * (len(particles) - 1), dtype=torch.float64)

        def resampler(log_w, num, rng):
            drawn = rng.categorical((log_w + hide).expand(num - is_held, -1))
            return torch.cat([torch.zeros(int(is_held), dtype=torch.int64), drawn])

        return Resample(resampler, None).apply(particles, rng)


def law_exchange_keeps_the_product(exchange):
    sweeps = tempering().sweeps()
    powers = [sweep.power for sweep in sweeps]
    laws_chain.law_chain_keeps(joint(sweeps, TINY, LM), lambda trails, rng: tuple(exchange(trails, powers, 0, rng)[0]))


def sign_of_the_gap(chains, powers, offset, rng):
    """Prefers the better answer in the hotter chain."""
    return exchanged(chains, [-p for p in powers], offset, rng)


def scores_at_their_own_power(chains, powers, offset, rng):
    """Accepts by the difference of the chains' own tempered scores."""
    gap = powers[1] * chains[1].score - powers[0] * chains[0].score
    chance = torch.tensor([gap], dtype=torch.float64).clamp_max(0.0).exp()
    taken = bool(rng.uniform([chance]) < chance)
    return (list(chains)[::-1] if taken else list(chains)), [taken]


def always_exchanged(chains, powers, offset, rng):
    """Rotates the answers through the chains."""
    return [*chains[1:], chains[0]], [True]


@dataclass(frozen=True)
class ForgetsTheTemperature(AnnealedResample):
    """Resamples by annealed weights and then takes them as equal, as if they had been the weights themselves."""

    def run(self, particles, rng):
        after = yield from super().run(particles, rng)
        return replace(after, log_w=torch.zeros_like(after.log_w), log_z=particles.log_evidence)


@dataclass(frozen=True)
class KeepsThePromise(AnnealedResample):
    """Counts what it saw ahead as if it had happened."""

    def run(self, particles, rng):
        promise = yield from self.promise(particles, rng)
        return (yield from super().run(particles.reweighted(promise), rng))


@dataclass(frozen=True)
class Foreseen:
    """A look ahead that knows who will be praised."""

    guarantee = Guarantee.EXACT

    def __call__(self, state, rng):
        yield from ()
        return state, as_log_weights([float(len(item.prefix.tokens)) for item in state])


def law_annealing_keeps_the_measure(kind):
    items = tuple(Judged(Prefix(TINY, tokens)) for tokens in ((0,), (1, 0), (1, 1)))
    particles = Particles(Batch(items), as_log_weights([0.0, 2.0, 1.0]), log_z=0.1)
    for look_ahead in (None, Foreseen()):
        laws_op.law_keeps_the_measure(kind(systematic, None, "entropy", look_ahead), particles)
