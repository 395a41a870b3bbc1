"""A linear-Gaussian state-space model: evidence and posterior by the Kalman filter, and by plain linear algebra.

x_1 ~ N(mean, spread^2), x_t = decay x_{t-1} + N(0, drive^2), y_t = x_t + N(0, blur^2). A path is an answer of T states.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ponder.testing.numbers import Bells, numbers_of


@dataclass(frozen=True)
class LinearGaussian:
    observed: tuple[float, ...]  # y_1 .. y_T
    decay: float = 0.8
    drive: float = 0.6
    blur: float = 0.5
    mean: float = 0.3
    spread: float = 1.0
    is_guided: bool = False  # propose from the posterior given all observations instead of the prior

    @property
    def size(self) -> int:
        return 1

    @property
    def num_states(self) -> int:
        return len(self.observed)

    def law(self, numbers: tuple[float, ...]) -> Bells:
        return Bells(((1.0, self.decay * numbers[-1], self.drive) if numbers else (1.0, self.mean, self.spread),))

    def proposal(self, numbers: tuple[float, ...]) -> Bells:
        if not self.is_guided:
            return self.law(numbers)
        ((_, mean, deviation),) = self.law(numbers).parts
        later, at = self.later(len(numbers)), self.observed[len(numbers)]
        precision = deviation**-2 + self.blur**-2 + later[0]
        return Bells(((1.0, (mean * deviation**-2 + at * self.blur**-2 + later[1]) / precision, precision**-0.5),))

    def later(self, t: int) -> tuple[float, float]:
        """(c, b) with p(y_{t+1} .. y_{T-1} | x_t = x) ~ exp(-c x^2 / 2 + b x), states counted from 0."""
        c, b = 0.0, 0.0
        for y in self.observed[:t:-1]:
            c, b = c + self.blur**-2, b + y * self.blur**-2
            shrink = 1 / (1 + c * self.drive**2)
            c, b = self.decay**2 * c * shrink, self.decay * b * shrink
        return c, b

    def log_likelihood(self, tokens: Sequence[int]) -> float:
        """log p(y_1 .. y_t | x_1 .. x_t)."""
        return math.fsum(Bells(((1.0, x, self.blur),)).log_p(y) for x, y in zip(numbers_of(tokens), self.observed))

    def kalman(self) -> tuple[float, list[float]]:
        """(log evidence, E[x_t | y_1 .. y_t] for every t)."""
        mean, variance, total, means = self.mean, self.spread**2, 0.0, []
        for t, y in enumerate(self.observed):
            if t > 0:
                mean, variance = self.decay * mean, self.decay**2 * variance + self.drive**2
            total += Bells(((1.0, mean, math.sqrt(variance + self.blur**2)),)).log_p(y)
            gain = variance / (variance + self.blur**2)
            mean, variance = mean + gain * (y - mean), (1 - gain) * variance
            means.append(mean)
        return total, means

    def joint(self) -> tuple[float, torch.Tensor]:
        """(log evidence, E[x | all y]) by conditioning the joint Gaussian of all states and observations: a second opinion."""
        num = self.num_states
        step = torch.eye(num, dtype=torch.float64) - self.decay * torch.diag(torch.ones(num - 1, dtype=torch.float64), -1)
        noise = torch.tensor([self.spread**2] + [self.drive**2] * (num - 1), dtype=torch.float64)
        path = torch.linalg.inv(step)
        mean, cov = path[:, 0] * self.mean, path @ torch.diag(noise) @ path.T
        seen = cov + self.blur**2 * torch.eye(num, dtype=torch.float64)
        gap = torch.tensor(self.observed, dtype=torch.float64) - mean
        log_evidence = -0.5 * (gap @ torch.linalg.solve(seen, gap) + torch.logdet(2 * math.pi * seen))
        return float(log_evidence), mean + cov @ torch.linalg.solve(seen, gap)
