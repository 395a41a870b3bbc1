"""The noise behind a draw: one number of [0, 1) per (seed, position), and how to move it a little."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

NORMAL = NormalDist()
SMALLEST = 2.0**-53


def drifted(noise: Callable[[int], float], seed: int, drift: Sequence[tuple[int, float]]) -> float:
    """A number of [0, 1): noise(seed), mixed with noise(other) for each (other, share) of `drift` in turn.

    In Gaussian coordinates z = Phi^-1(u): z <- sqrt(1 - share^2) z + share z'. So it is uniform again and the draw keeps its
    distribution; share 0 changes nothing, bit for bit, and share 1 is the other seed's number.
    """
    probe = noise(seed)
    for other, share in drift:
        if share == 1:
            probe = noise(other)
        elif share > 0:
            probe = uniform(math.sqrt(1 - share * share) * gaussian(probe) + share * gaussian(noise(other)))
    return probe


def gaussian(probe: float) -> float:
    """Phi^-1."""
    return NORMAL.inv_cdf(max(probe, SMALLEST / 2))


def uniform(z: float) -> float:
    """Phi, below 1."""
    return min(0.5 * math.erfc(-z / math.sqrt(2)), 1 - SMALLEST)
