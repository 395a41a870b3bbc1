"""Bugs of Markov chains over answers, each rebuilt small: the wrong sweep, and the law that tells it from ours."""

from dataclasses import dataclass

import torch

from infer.chains import TINY, joint, moving, stepping, tempering, trails_of
from ponder.infer.conditional import Sweep
from ponder.infer.ops import Resample
from ponder.infer.parallel_tempering import exchanged
from ponder.testing import laws_chain
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
