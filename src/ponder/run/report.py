"""A comparison as honest figures: paired intervals, tokens per correct answer, oracle against selected, and a plain verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ponder.run.compare import Comparison, Row
from ponder.verify.ceiling import ceiling
from ponder.verify.measure import auroc, false_positive_rate, true_positive_rate

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One recipe on n questions. Intervals are 95 %, bootstrapped over questions; differences are paired with the baseline."""

    recipe: str
    num: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    oracle: float  # share of questions with a right candidate
    gain: float  # accuracy minus the baseline's
    gain_low: float
    gain_high: float
    tokens: float  # per question, booked
    tokens_per_correct: float | None  # None when nothing was right
    seconds: float  # per question: its share of the engine's time
    cut: float  # share of questions that the budget cut short
    verifier_auroc: float | None  # of the strategy's own verifier on its candidates; None without both kinds
    limit: "Limit | None" = None  # what that verifier's mistakes allow at most; None likewise

    @property
    def verdict(self) -> str:
        """Whether the gain over the baseline is larger than chance."""
        if self.gain_low > 0:
            return "better"
        return "worse" if self.gain_high < 0 else "no difference shown"


@dataclass(frozen=True)
class Limit:
    """A verifier that accepts one candidate in `one_in`, as a selection among so many does, and where resampling with it ends.

    The ceiling is verify.ceiling's, with each question's share of right candidates as its rate: an estimate, for candidates
    that are independent samples.
    """

    one_in: int
    accepts_wrong: float
    accepts_right: float
    ceiling: float


def limit_of(rows: Sequence[Row]) -> Limit | None:
    """None where the verifier judged no candidates of both kinds, or only one per question."""
    judged = [row.values for row in rows if row.values]
    values, labels = [v for row in judged for v, _ in row], [ok for row in judged for _, ok in row]
    one_in = round(len(values) / max(1, len(judged)))
    if len(set(labels)) < 2 or one_in < 2:
        return None
    threshold = sorted(values, reverse=True)[len(values) // one_in - 1]
    wrong, right = false_positive_rate(values, labels, threshold=threshold), true_positive_rate(values, labels, threshold=threshold)
    rates = [sum(ok for _, ok in row) / len(row) for row in judged]
    return Limit(one_in, wrong, right, ceiling(rates, right, wrong))


def summarize(comparison: Comparison, *, seed: int = 0) -> list[Summary]:
    """One Summary per recipe with rows, in order; the first recipe is the baseline. Pairs are by question."""
    tables = {label: {row.question: row for row in comparison.of(label)} for label in comparison.recipes}
    base = tables[comparison.recipes[0]]
    return [_summary(label, list(rows.values()), base, seed) for label, rows in tables.items() if rows]


def _summary(label: str, rows: Sequence[Row], base: dict[str, Row], seed: int) -> Summary:
    right = np.array([row.right for row in rows], dtype=float)
    paired = [row for row in rows if row.question in base]
    gains = np.array([float(row.right) - float(base[row.question].right) for row in paired])
    tokens = float(np.mean([row.result.cost.tokens for row in rows]))
    low, high = interval(right, seed)
    gain_low, gain_high = interval(gains, seed)
    judged = [pair for row in rows for pair in row.values]
    kinds = {ok for _, ok in judged}
    return Summary(
        recipe=label, num=len(rows), accuracy=float(right.mean()), accuracy_low=low, accuracy_high=high,
        oracle=float(np.mean([row.oracle for row in rows])), gain=float(gains.mean()) if len(gains) else 0.0,
        gain_low=gain_low, gain_high=gain_high, tokens=tokens,
        tokens_per_correct=tokens * len(rows) / right.sum() if right.any() else None,
        seconds=float(np.mean([row.result.cost.seconds for row in rows])),
        cut=float(np.mean([row.result.stop_reason != "done" for row in rows])),
        verifier_auroc=auroc([v for v, _ in judged], [ok for _, ok in judged]) if len(kinds) == 2 else None, limit=limit_of(rows),
    )  # fmt: skip


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean of [n] values; (0, 0) for none. The same seed gives the same interval."""
    if len(values) == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
