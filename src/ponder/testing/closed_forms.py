"""What sampling strategies must reach in a simulated world, in closed form. p: chance that one sample is right.

All are exact but for quadrature: 4,001 points on [-9, 9 + mu], error below 1e-9.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()
POINTS = 4001


def coverage_of(p: float, num: int) -> float:
    """Chance that one of `num` samples is right."""
    return -math.expm1(num * math.log1p(-p)) if p < 1 else 1.0


def best_of_n_of(p: float, num: int, auroc: float) -> float:
    """Chance that the best-judged of `num` samples is right, under binormal verdicts of that area.

    With k right ones, the best is right with probability int k phi(s - mu) Phi(s - mu)^(k-1) Phi(s)^(n-k) ds.
    """
    return math.fsum(math.comb(num, k) * p**k * (1 - p) ** (num - k) * best_is_right(k, num - k, auroc) for k in range(1, num + 1))


@lru_cache(maxsize=10_000)
def best_is_right(num_right: int, num_wrong: int, auroc: float) -> float:
    """Chance that the highest of `num_right` draws of N(mu, 1) beats the highest of `num_wrong` of N(0, 1)."""
    if auroc == 1 or num_wrong == 0:
        return 1.0
    shift = math.sqrt(2) * NORMAL.inv_cdf(auroc)
    width = (18.0 + shift) / (POINTS - 1)
    points = (-9.0 + width * i for i in range(POINTS))
    return width * math.fsum(
        num_right * NORMAL.pdf(s - shift) * NORMAL.cdf(s - shift) ** (num_right - 1) * NORMAL.cdf(s) ** num_wrong for s in points
    )


def accepted_of(p: float, num: int, false_positives: float) -> float:
    """Chance that the answer is right when one is taken among the accepted of `num`, or among all where none is accepted.

    A right one is always accepted, a wrong one with that probability. As num grows it tends to p / (p + (1 - p) false_positives).
    """
    accepted = p + (1 - p) * false_positives
    some = -math.expm1(num * math.log1p(-accepted)) if accepted < 1 else 1.0
    return some * p / accepted if accepted > 0 else 0.0  # where none is accepted, none is right


def vote_of(probabilities: Sequence[float], num: int) -> float:
    """Chance that `num` independent votes elect answer 0. Ties go to the likelier answer. Sums over all counts."""
    order = sorted(range(len(probabilities)), key=lambda y: (-probabilities[y], y))
    rank = {y: i for i, y in enumerate(order)}
    total = 0.0
    for counts in compositions(num, len(probabilities)):
        winner = min((y for y, c in enumerate(counts) if c == max(counts)), key=lambda y: rank[y])
        if winner == 0:
            log_p = math.lgamma(num + 1) - math.fsum(math.lgamma(c + 1) for c in counts)
            total += math.exp(log_p) * math.prod(p**c for p, c in zip(probabilities, counts))
    return total


def compositions(num: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `num` as an ordered sum of `parts` counts."""
    if parts == 1:
        yield (num,)
        return
    for first in range(num + 1):
        yield from ((first, *rest) for rest in compositions(num - first, parts - 1))
