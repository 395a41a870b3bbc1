"""How good a verifier is, from its values on answers known to be right or wrong.

values float, one per answer, larger = better; labels bool, True = right. Abstentions are the caller's to count and leave out.
All are exact functions of the sample, ties included; BadField for unequal lengths, an empty sample, NaN, or where undefined.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from ponder.core.errors import BadField


def auroc(values: Sequence[float], labels: Sequence[bool]) -> float:
    """P(value of a right answer > value of a wrong one) + 1/2 P(equal). Needs one of each. O(n log n)."""
    check(values, labels)
    right, wrong = _split(values, labels)
    if not right or not wrong:
        raise BadField(f"auroc of {len(right)} right and {len(wrong)} wrong answers: needs at least one of each")
    wrong.sort()
    wins = sum(bisect_left(wrong, v) + bisect_right(wrong, v) for v in right)  # twice the number won, ties once
    return wins / (2 * len(right) * len(wrong))


def expected_calibration_error(values: Sequence[float], labels: Sequence[bool], *, num_bins: int = 10) -> float:
    """sum over bins of share * |mean value - share right|; equal-width bins of [0, 1], the last one closed."""
    check(values, labels)
    _check_probabilities(values)
    if num_bins < 1:
        raise BadField(f"num_bins={num_bins}: must be at least 1")
    gaps = [0.0] * num_bins
    for value, label in zip(values, labels):
        gaps[min(int(value * num_bins), num_bins - 1)] += value - label
    return math.fsum(abs(gap) for gap in gaps) / len(values)


def brier(values: Sequence[float], labels: Sequence[bool]) -> float:
    """Mean squared difference of probability and truth, in [0, 1]; 0.25 for always 1/2."""
    check(values, labels)
    _check_probabilities(values)
    return math.fsum((value - label) ** 2 for value, label in zip(values, labels)) / len(values)


def false_positive_rate(values: Sequence[float], labels: Sequence[bool], *, threshold: float) -> float:
    """Share of the wrong answers whose value reaches `threshold`. Needs one wrong answer."""
    check(values, labels)
    _, wrong = _split(values, labels)
    if not wrong:
        raise BadField("false-positive rate without a wrong answer is undefined; judge some wrong ones too")
    return sum(value >= threshold for value in wrong) / len(wrong)


def true_positive_rate(values: Sequence[float], labels: Sequence[bool], *, threshold: float) -> float:
    """Share of the right answers whose value reaches `threshold`. Needs one right answer."""
    check(values, labels)
    right, _ = _split(values, labels)
    if not right:
        raise BadField("true-positive rate without a right answer is undefined; judge some right ones too")
    return sum(value >= threshold for value in right) / len(right)


def check(values: Sequence[float], labels: Sequence[bool]) -> None:
    if len(values) != len(labels) or not values:
        raise BadField(f"{len(values)} values and {len(labels)} labels: must be as many, and at least one")
    if any(math.isnan(v) for v in values):
        raise BadField("a verifier's value is NaN; leave abstentions out before measuring")


def _check_probabilities(values: Sequence[float]) -> None:
    bad = next((v for v in values if not 0 <= v <= 1), None)
    if bad is not None:
        raise BadField(f"value {bad} is no probability: calibration needs values in [0, 1]")


def _split(values: Sequence[float], labels: Sequence[bool]) -> tuple[list[float], list[float]]:
    right = [v for v, label in zip(values, labels) if label]
    return right, [v for v, label in zip(values, labels) if not label]
