"""A hidden Markov model small enough to enumerate: kernels, potentials, and its exact posterior and evidence."""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.asks import Answer, Turn
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, as_log_weights
from ponder.core.rng import Rng
from ponder.testing.toy import ToyLM

Path = tuple[int, ...]
Stepped = Generator[Turn, Sequence[Answer], tuple[Batch[Path], Tensor]]


def log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf


def rows(log_p: list[list[float]]) -> Tensor:
    return torch.tensor(log_p, dtype=torch.float64)


@dataclass(frozen=True)
class HMM:
    """States 0..K-1; a path x_1..x_T has prior initial[x_1] prod transition[x_{t-1}][x_t]; step t weighs emission[t][x_t]."""

    initial: tuple[float, ...]  # [K]
    transition: tuple[tuple[float, ...], ...]  # [K][K]
    emission: tuple[tuple[float, ...], ...]  # [T][K] likelihood of the observation at t; zeros allowed

    def prior(self, before: Path) -> tuple[float, ...]:
        return self.transition[before[-1]] if before else self.initial

    def weight(self, path: Path) -> float:
        """Joint mass of a path of any length up to T and its observations."""
        mass = 1.0
        for t, x in enumerate(path):
            mass *= self.prior(path[:t])[x] * self.emission[t][x]
        return mass

    def posterior(self, num_steps: int | None = None) -> dict[Path, float]:
        """Unnormalised, over all paths of `num_steps` (default T): its total is the evidence."""
        num = len(self.emission) if num_steps is None else num_steps
        return {path: self.weight(path) for path in itertools.product(range(len(self.initial)), repeat=num)}

    def evidence(self) -> float:
        """By the forward recursion, as a second opinion on the sum over paths."""
        forward = [p * e for p, e in zip(self.initial, self.emission[0])]
        for likelihood in self.emission[1:]:
            moved = [math.fsum(f * row[x] for f, row in zip(forward, self.transition)) for x in range(len(forward))]
            forward = [m * e for m, e in zip(moved, likelihood)]
        return math.fsum(forward)

    def log_likelihood(self, tokens: Sequence[int]) -> float:
        """Of the observations up to the last of those states."""
        return sum(log(self.emission[t][x]) for t, x in enumerate(tokens))

    def lm(self) -> ToyLM:
        """The prior as a language model that says one digit per state and ends by its length alone."""
        rows = (self.initial, *self.transition)
        return ToyLM("0123456789"[: len(self.initial)], tuple((*row, 0.0) for row in rows))

    def log_potential(self, state: Batch[Path]) -> Tensor:
        """[N] log-likelihood of the last step's observation."""
        return as_log_weights([log(self.emission[len(path) - 1][path[-1]]) for path in state])


SMALL = HMM((0.75, 0.25), ((0.75, 0.25), (1 / 3, 2 / 3)), ((0.9, 0.2), (0.5, 0.7), (0.2, 0.1)))
DEADLY = HMM((0.5, 0.5), ((0.75, 0.25), (0.25, 0.75)), ((0.0, 1.0), (0.6, 0.3), (1.0, 0.0)))  # likelihoods of exactly zero


@dataclass(frozen=True)
class Step:
    """Kernel: every path grows by one state, drawn from the model."""

    hmm: HMM

    guarantee = Guarantee.EXACT

    def __call__(self, state: Batch[Path], rng: Rng) -> Stepped:
        yield from ()
        drawn = rng.categorical(rows([[log(p) for p in self.hmm.prior(path)] for path in state]))
        return Batch(tuple((*path, int(x)) for path, x in zip(state, drawn))), torch.zeros(len(state), dtype=torch.float64)


@dataclass(frozen=True)
class ProposedStep:
    """Kernel: the next state is drawn uniformly and weighed by model / proposal."""

    hmm: HMM

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Path], rng: Rng) -> Stepped:
        yield from ()
        num = len(self.hmm.initial)
        drawn = rng.categorical(torch.zeros(len(state), num, dtype=torch.float64)).tolist()
        log_g = as_log_weights([log(self.hmm.prior(path)[x]) + math.log(num) for path, x in zip(state, drawn)])
        return Batch(tuple((*path, x) for path, x in zip(state, drawn))), log_g


@dataclass(frozen=True)
class Gibbs:
    """Move kernel: redraws state `at` of every path given all its others; leaves the joint with the observations unchanged."""

    hmm: HMM
    at: int

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Path], rng: Rng) -> Stepped:
        yield from ()
        choices = [[(*path[: self.at], x, *path[self.at + 1 :]) for x in range(len(self.hmm.initial))] for path in state]
        drawn = rng.categorical(rows([[log(self.hmm.weight(p)) for p in row] for row in choices]))
        return Batch(tuple(row[int(x)] for row, x in zip(choices, drawn))), torch.zeros(len(state), dtype=torch.float64)


@dataclass(frozen=True)
class Metropolis:
    """Move kernel: proposes a uniformly drawn value for state `at`, accepts with the ratio of the joint masses."""

    hmm: HMM
    at: int

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Path], rng: Rng) -> Stepped:
        yield from ()
        num = len(self.hmm.initial)
        drawn = rng.categorical(torch.zeros(len(state), num, dtype=torch.float64)).tolist()
        proposed = [(*path[: self.at], x, *path[self.at + 1 :]) for path, x in zip(state, drawn)]
        ratio = as_log_weights([min(1.0, self.hmm.weight(new) / self.hmm.weight(old)) for new, old in zip(proposed, state)])
        accepted = rng.uniform([r[None] for r in ratio]) < ratio
        moved = tuple(new if a else old for new, old, a in zip(proposed, state, accepted.tolist()))
        return Batch(moved), torch.zeros(len(state), dtype=torch.float64)
