"""A denoiser whose score is known exactly: diffusion of a mixture of round Gaussians, with its evidence under a quadratic reward.

Levels run from num_steps (almost only noise) down to 0 (data); at level t, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. An answer is
the states x_T, .., x_0: the first is drawn from its exact marginal, each further one costs one evaluation of the denoiser (NFE).
Stochastic: from the exact p(x_s | x_t), so that x_0 has the data's distribution whatever num_steps. Deterministic: DDIM (Song et
al. 2021, arXiv:2010.02502), where the noise of the first state decides everything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.testing.numbers import Bells, states_of

Point = tuple[float, ...]


@dataclass(frozen=True)
class Denoiser:
    means: tuple[Point, ...]  # of the data's parts
    shares: tuple[float, ...]
    deviation: float = 0.2  # of every part, in every direction
    num_steps: int = 6
    least_signal: float = 1e-3  # a_T
    is_deterministic: bool = False

    @property
    def size(self) -> int:
        return len(self.means[0])

    @property
    def num_states(self) -> int:
        return self.num_steps + 1

    def signal(self, level: int) -> float:
        """a_t: 1 for data, falling evenly in angle."""
        last = math.acos(math.sqrt(self.least_signal))
        return math.cos(last * level / self.num_steps) ** 2

    def variance(self, level: int) -> float:
        """Of x_t within one part."""
        a = self.signal(level)
        return a * self.deviation**2 + 1 - a

    def denoised(self, x: Point, level: int) -> Point:
        """E[x_0 | x_t = x]."""
        a, v = self.signal(level), self.variance(level)
        gain = math.sqrt(a) * self.deviation**2 / v
        parts = [[mi + gain * (xi - math.sqrt(a) * mi) for xi, mi in zip(x, m)] for m in self.means]
        return tuple(math.fsum(w * part[i] for w, part in zip(shares_given(self, x, level), parts)) for i in range(self.size))

    def score(self, x: Point, level: int) -> Point:
        """Gradient of log p(x_t) at x; level above 0."""
        a = self.signal(level)
        return tuple((math.sqrt(a) * d - xi) / (1 - a) for d, xi in zip(self.denoised(x, level), x))

    def log_p(self, x: Point, level: int) -> float:
        a, v = self.signal(level), self.variance(level)
        parts = [Bells(((1.0, 0.0, math.sqrt(v)),)) for _ in x]
        logs = [math.log(w) + math.fsum(b.log_p(xi - math.sqrt(a) * mi) for b, xi, mi in zip(parts, x, m)) for w, m in zip(self.shares, self.means)]
        return max(logs) + math.log(math.fsum(math.exp(z - max(logs)) for z in logs))

    def law(self, numbers: tuple[float, ...]) -> Bells:
        """The next coordinate, given those before it in its own state and the state before."""
        level, at = self.num_steps - len(numbers) // self.size, len(numbers) % self.size
        here = numbers[len(numbers) - at :]
        if level == self.num_steps:
            a, v = self.signal(level), self.variance(level)
            return self.coordinate(here, list(self.shares), [[math.sqrt(a) * mi for mi in m] for m in self.means], v)
        x = numbers[len(numbers) - at - self.size : len(numbers) - at]
        if self.is_deterministic:
            return Bells(((1.0, stepped(self, x, level + 1)[at], 0.0),))
        a, ratio, v = self.signal(level), self.signal(level + 1) / self.signal(level), self.variance(level)
        precision = 1 / v + ratio / (1 - ratio)
        means = [[(math.sqrt(a) * mi / v + math.sqrt(ratio) * xi / (1 - ratio)) / precision for xi, mi in zip(x, m)] for m in self.means]
        return self.coordinate(here, shares_given(self, x, level + 1), means, 1 / precision)

    def proposal(self, numbers: tuple[float, ...]) -> Bells:
        return self.law(numbers)

    def coordinate(self, here: Point, shares: list[float], means: list[list[float]], variance: float) -> Bells:
        """Coordinate len(here) of a mixture, given the earlier ones."""
        logs = [math.log(max(w, 1e-300)) - 0.5 * math.fsum((x - m) ** 2 for x, m in zip(here, row)) / variance for w, row in zip(shares, means)]
        return Bells(tuple((w, row[len(here)], math.sqrt(variance)) for w, row in zip(softmax(logs), means)))


@lru_cache(maxsize=1000)
def stepped(denoiser: Denoiser, x: Point, level: int) -> Point:
    """DDIM from x_t to x_{t-1}."""
    a, b = denoiser.signal(level), denoiser.signal(level - 1)
    clean = denoiser.denoised(x, level)
    return tuple(math.sqrt(b) * c + math.sqrt((1 - b) / (1 - a)) * (xi - math.sqrt(a) * c) for xi, c in zip(x, clean))


@lru_cache(maxsize=1000)
def shares_given(denoiser: Denoiser, x: Point, level: int) -> list[float]:
    """p(part | x_t = x)."""
    a, v = denoiser.signal(level), denoiser.variance(level)
    gaps = [math.fsum((xi - math.sqrt(a) * mi) ** 2 for xi, mi in zip(x, m)) for m in denoiser.means]
    return softmax([math.log(w) - 0.5 * gap / v for w, gap in zip(denoiser.shares, gaps)])


def softmax(logs: Sequence[float]) -> list[float]:
    weights = [math.exp(z - max(logs)) for z in logs]
    return [w / math.fsum(weights) for w in weights]


@dataclass(frozen=True)
class Nearness:
    """Verifier: -|x_0 - target|^2 / (2 width^2) of what the denoiser makes of the last whole state."""

    denoiser: Denoiser
    target: Point
    width: float = 0.5
    name: str = "nearness"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(self.verdict(states_of(self.denoiser, c.tokens)) for c in candidates)

    def verdict(self, states: list[Point]) -> Verdict:
        if not states:
            return ABSTAIN
        level = self.denoiser.num_states - len(states)
        return Verdict(self.reward(self.denoiser.denoised(states[-1], level) if level else states[-1]))

    def reward(self, x: Point) -> float:
        return -0.5 * math.fsum((xi - ti) ** 2 for xi, ti in zip(x, self.target)) / self.width**2

    def log_evidence(self) -> float:
        """log E[exp(reward(x_0))] over the data."""
        d = self.denoiser
        v, c = d.deviation**2, self.width**2
        gaps = [math.fsum((m - t) ** 2 for m, t in zip(mean, self.target)) for mean in d.means]
        return math.log(math.fsum(w * math.exp(-0.5 * gap / (v + c)) for w, gap in zip(d.shares, gaps))) + 0.5 * d.size * math.log(c / (v + c))
