"""How good a verifier is, with intervals: AUROC, calibration error, Brier score, false-positive rate, and what it cost.

AUROC over all answers also rewards knowing which questions are hard; to choose among answers to one question, AUROC within
questions is what counts: P(right above wrong | same question), ties half.

Intervals are 95 %, by bootstrap over questions: answers to one question are not independent of each other. The slow, exact
definitions are in verify.measure; a test compares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ponder.core.errors import BadField
from ponder.verify.measure import check

RESAMPLES = 1000
Array = np.ndarray
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """On `num` answers to `num_questions` questions. None where undefined: without right and wrong answers, or no probabilities."""

    num: int
    num_questions: int
    num_abstained: int
    share_right: float
    auroc: float | None
    auroc_interval: Interval
    auroc_within: float | None
    auroc_within_interval: Interval
    calibration_error: float | None
    calibration_interval: Interval
    brier: float | None
    brier_interval: Interval
    threshold: float  # from which on a value counts as accepted
    false_positive_rate: float | None
    false_positive_interval: Interval
    true_positive_rate: float | None
    tokens: float  # verifier tokens per answer
    seconds: float  # of the verifier's own, per answer


def quality(
    values: Sequence[float | None], labels: Sequence[bool], groups: Sequence[str], *, is_probability: bool, threshold: float = 0.5,
    tokens: float = 0.0, seconds: float = 0.0, seed: int = 0,
) -> Quality:  # fmt: skip
    """Of values, None for an abstention, on answers to the questions `groups`. Raises BadField as verify.measure does."""
    kept = [i for i, value in enumerate(values) if value is not None]
    if not len(values) == len(labels) == len(groups):
        raise BadField(f"{len(values)} values, {len(labels)} labels, {len(groups)} questions: must be as many")
    check([values[i] for i in kept], [labels[i] for i in kept])  # type: ignore[misc]
    x, y = np.array([values[i] for i in kept], dtype=float), np.array([labels[i] for i in kept])
    if is_probability and ((x < 0) | (x > 1)).any():
        raise BadField(f"value {x[(x < 0) | (x > 1)][0]} is no probability: calibration needs values in [0, 1]")
    names, group = np.unique([groups[i] for i in kept], return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    counts = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws]).astype(float)
    weights = list(counts[:, group])
    once = np.ones(len(x))

    def both(measure: Callable[[Array, Array, Array], float | None], is_defined: bool = True) -> tuple[float | None, Interval]:
        found = measure(x, y, once) if is_defined else None
        if found is None:
            return None, (0.0, 1.0)
        drawn = [value for w in weights if (value := measure(x, y, w)) is not None]
        return found, interval_of(drawn)

    won, pairs = pairs_within(x, y, group, len(names))
    drawn_pairs = counts @ pairs
    within = float(won.sum() / pairs.sum()) if pairs.any() else None
    within_interval = interval_of((counts @ won)[drawn_pairs > 0] / drawn_pairs[drawn_pairs > 0]) if pairs.any() else (0.0, 1.0)
    area, calibration = both(weighted_auroc), both(weighted_calibration, is_probability)
    square, false = both(weighted_brier, is_probability), both(lambda x, y, w: share_accepted(x, w * ~y, threshold))
    return Quality(
        num=len(values), num_questions=len(set(groups)), num_abstained=len(values) - len(kept), share_right=float(y.mean()),
        auroc=area[0], auroc_interval=area[1], auroc_within=within, auroc_within_interval=within_interval,
        calibration_error=calibration[0], calibration_interval=calibration[1],
        brier=square[0], brier_interval=square[1], threshold=threshold, false_positive_rate=false[0], false_positive_interval=false[1],
        true_positive_rate=share_accepted(x, once * y, threshold), tokens=tokens, seconds=seconds,
    )  # fmt: skip


def interval_of(drawn: Sequence[float] | Array) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def weighted_auroc(x: Array, y: Array, w: Array) -> float | None:
    """P(right above wrong) + 1/2 P(equal); None without one of each."""
    _, level = np.unique(x, return_inverse=True)
    right, wrong = np.bincount(level, w * y), np.bincount(level, w * ~y)
    pairs = right.sum() * wrong.sum()
    return float((right * (wrong.cumsum() - wrong / 2)).sum() / pairs) if pairs else None


def pairs_within(x: Array, y: Array, group: Array, num_groups: int) -> tuple[Array, Array]:
    """By question [G]: pairs of a right and a wrong answer, and how many of them the right one won, ties half."""
    won, pairs = np.zeros(num_groups), np.zeros(num_groups)
    for g in range(num_groups):
        gaps = x[(group == g) & y][:, None] - x[(group == g) & ~y][None]
        won[g], pairs[g] = (gaps > 0).sum() + 0.5 * (gaps == 0).sum(), gaps.size
    return won, pairs


def weighted_calibration(x: Array, y: Array, w: Array, num_bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    gaps = np.bincount(np.minimum((x * num_bins).astype(int), num_bins - 1), w * (x - y))
    return float(np.abs(gaps).sum() / w.sum())


def weighted_brier(x: Array, y: Array, w: Array) -> float:
    return float((w * (x - y) ** 2).sum() / w.sum())


def share_accepted(x: Array, w: Array, threshold: float) -> float | None:
    """Share of the weight whose value reaches `threshold`; None without any weight."""
    total = w.sum()
    return float((w * (x >= threshold)).sum() / total) if total else None
