"""What independent samples alone say: coverage and its law, error decomposition, accuracy against length.

A pool holds the samples of one question, drawn independently with one sampling. Intervals are bootstrapped over questions, never over
samples: the samples of a question are no new questions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ponder.core.errors import BadField
from ponder.verify.coverage import PowerLaw, pass_at_k

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Samples of one question."""

    question: str
    right: tuple[bool, ...]
    lengths: tuple[int, ...]  # tokens
    paths: tuple[tuple[int, float], ...] = ()  # (which distinct answer text it is, its log-probability as drawn)

    @property
    def num(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def row(self) -> list[float]:
        return [round(self.value, 5), round(self.low, 5), round(self.high, 5)]


def estimated(pools: Sequence[Pool], figure: Callable[[Sequence[Pool]], float], seed: int = 0) -> Estimate:
    """`figure` of the pools, and its percentiles over pools drawn with replacement; draws where it is undefined (NaN) are left out."""
    rng = np.random.default_rng(seed)
    draws = [figure([pools[i] for i in rng.integers(0, len(pools), len(pools))]) for _ in range(RESAMPLES // 4)]
    known = [x for x in draws if not math.isnan(x)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return Estimate(figure(pools), float(low), float(high))


# ---- coverage


def budgets_up_to(num: int) -> list[int]:
    """Up to 40 whole numbers from 1 to `num`, evenly spaced in their logarithm."""
    return sorted({round(num ** (i / 39)) for i in range(40)})


def coverage_table(pools: Sequence[Pool], ks: Sequence[int]) -> np.ndarray:
    """[questions, ks] unbiased pass@k of each question."""
    if not pools or max(ks) > min(pool.num for pool in pools):
        raise BadField(f"coverage at {max(ks, default=0)} samples of {min((p.num for p in pools), default=0)}: draw more samples")
    return np.array([[pass_at_k(pool.num, sum(pool.right), k) for k in ks] for pool in pools])


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Coverage at `ks` with intervals; the law that it follows, and what the law says about more samples."""

    ks: tuple[int, ...]
    at: tuple[Estimate, ...]
    law: PowerLaw | None  # None where coverage is 0 or 1 nearly everywhere
    a: Estimate | None
    b: Estimate | None
    ahead: dict[int, Estimate]  # k beyond what was drawn -> coverage by the law


def covered(pools: Sequence[Pool], *, ahead: Sequence[int] = (64, 256), seed: int = 0) -> Coverage:
    ks = budgets_up_to(min(pool.num for pool in pools))
    table = coverage_table(pools, ks)
    rng = np.random.default_rng(seed)
    curves = np.array([table[rng.integers(0, len(pools), len(pools))].mean(0) for _ in range(RESAMPLES)])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    at = tuple(Estimate(float(v), float(a), float(b)) for v, a, b in zip(table.mean(0), low, high))
    law = fitted(ks, table.mean(0).tolist())
    laws = [found for curve in curves if (found := fitted(ks, curve.tolist())) is not None]
    if law is None or len(laws) < 0.9 * RESAMPLES:
        return Coverage(ks=tuple(ks), at=at, law=None, a=None, b=None, ahead={})
    beyond = {k: quantiled(law.at(k), [each.at(k) for each in laws]) for k in ahead if k > ks[-1]}
    a, b = quantiled(law.a, [each.a for each in laws]), quantiled(law.b, [each.b for each in laws])
    return Coverage(ks=tuple(ks), at=at, law=law, a=a, b=b, ahead=beyond)


def quantiled(value: float, draws: Sequence[float]) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def fitted(ks: Sequence[int], coverages: Sequence[float]) -> PowerLaw | None:
    """coverage = exp(a k^b), the least-squares line of log(-log coverage) on log k; None with fewer than two points inside (0, 1)."""
    inner = [(math.log(k), math.log(-math.log(c))) for k, c in zip(ks, coverages, strict=True) if 0 < c < 1]
    if len(inner) < 2:
        return None
    x, y = np.array(inner).T
    b = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    a = -math.exp(float(y.mean() - b * x.mean()))
    law = PowerLaw(a, b, 0.0)
    return PowerLaw(a, b, math.sqrt(float(np.mean([(law.at(k) - c) ** 2 for k, c in zip(ks, coverages)]))))


# ---- error decomposition


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Mean squared error of the voted share of the right answer, split as in arXiv:2502.00511.

    With p the chance of the right answer under the model and p^ its share among k samples,
    E (p^ - 1)^2 = (p - 1)^2 [model error, which no number of samples mends] + p (1 - p) / k [estimation error].
    Adding up the probabilities of distinct paths (perplexity consistency) errs by what was not drawn yet, which falls exponentially
    in k where single paths are likely, and not at all where each is as good as impossible.
    """

    model: Estimate
    estimation: dict[int, Estimate]  # k -> error
    path_estimation: dict[int, float]  # the same where probabilities of distinct paths are added up instead of votes (plug-in)
    path_mass: float  # mean probability of the right paths seen


def decomposed(pools: Sequence[Pool], ks: Sequence[int]) -> Decomposition:
    """Unbiased: both parts are U-statistics of pairs of samples. Needs two samples of each question."""
    if min(pool.num for pool in pools) < 2:
        raise BadField("error decomposition needs at least two samples of each question; draw more")
    model = estimated(pools, lambda some: float(np.mean([model_error(p) for p in some])))
    spread = estimated(pools, lambda some: float(np.mean([pair_spread(p) for p in some])))
    return Decomposition(
        model=model, estimation={k: Estimate(spread.value / k, spread.low / k, spread.high / k) for k in ks},
        path_estimation={k: float(np.mean([path_error(right_paths(p), k, never=never_met(p)) for p in pools])) for k in ks},
        path_mass=float(np.mean([math.fsum(right_paths(p)) for p in pools])),
    )  # fmt: skip


def right_paths(pool: Pool) -> list[float]:
    """Probabilities of the distinct right paths among the samples."""
    seen = {path: log_q for (path, log_q), right in zip(pool.paths, pool.right) if right}
    return [math.exp(log_q) for log_q in seen.values()]


def never_met(pool: Pool) -> float:
    """What is left of the share of right samples when the probabilities of the right paths seen are taken out; 0 where nothing is."""
    return max(0.0, sum(pool.right) / pool.num - math.fsum(right_paths(pool)))


def path_error(probabilities: Sequence[float], k: int, *, never: float = 0.0) -> float:
    """E (never + sum of the probabilities of the paths not drawn in k draws)^2, exactly: sum_ij q_i q_j P(neither i nor j was drawn).

    never: probability of paths that no number of draws like these would meet.
    """
    q = np.array(probabilities, dtype=float)
    alone = (1 - np.clip(q, 0.0, 1.0)) ** k
    unseen = np.clip(1 - q[:, None] - q[None, :], 0.0, 1.0) ** k
    np.fill_diagonal(unseen, alone)
    return float((q[:, None] * q[None, :] * unseen).sum() + 2 * never * (q * alone).sum() + never**2)


def model_error(pool: Pool) -> float:
    """Unbiased estimate of (1 - p)^2: the share of pairs of samples that are both wrong."""
    wrong = pool.num - sum(pool.right)
    return wrong * (wrong - 1) / (pool.num * (pool.num - 1))


def pair_spread(pool: Pool) -> float:
    """Unbiased estimate of p (1 - p): half the share of pairs of which one is right."""
    right = sum(pool.right)
    return right * (pool.num - right) / (pool.num * (pool.num - 1))


# ---- accuracy against length


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How being right goes with length, in points per doubling of tokens; over all samples, and within questions.

    Hard questions get long answers, so the raw slope confounds the two; within a question the difficulty is the same.
    """

    raw: Estimate
    within: Estimate
    num_mixed: int  # questions with both right and wrong samples of unequal length: those that decide `within`
    quintiles: tuple[float, ...]  # share right in fifths of all samples by length, shortest first
    controlled: tuple[float, ...]  # the same in fifths of each question's samples, question means taken out


def length_effect(pools: Sequence[Pool]) -> Lengths:
    mixed = [p for p in pools if 0 < sum(p.right) < p.num and len(set(p.lengths)) > 1]
    within = estimated(mixed, lambda some: slope(some, is_within=True)) if mixed else Estimate(math.nan, math.nan, math.nan)
    samples = sorted((length, right) for p in pools for length, right in zip(p.lengths, p.right))
    ranked = [(rank, right - sum(p.right) / p.num) for p in pools for rank, right in enumerate(by_length(p))]
    order = [gap for _, gap in sorted(ranked, key=lambda pair: pair[0])]
    return Lengths(
        raw=estimated(pools, lambda some: slope(some, is_within=False)), within=within, num_mixed=len(mixed),
        quintiles=fifths([float(right) for _, right in samples]), controlled=fifths(order),
    )  # fmt: skip


def fifths(values: Sequence[float]) -> tuple[float, ...]:
    """Means of five parts of about equal size, in order; NaN for an empty one."""
    return tuple(float(np.mean(part)) if len(part) else math.nan for part in np.array_split(np.array(values), 5))


def by_length(pool: Pool) -> list[bool]:
    """Whether each sample is right, the shortest first."""
    return [right for _, right in sorted(zip(pool.lengths, pool.right), key=lambda pair: pair[0])]


def slope(pools: Sequence[Pool], *, is_within: bool) -> float:
    """Least-squares slope of right (0 or 1) on log2 of the length; within: both measured from their question's mean."""
    xs, ys = [], []
    for pool in pools:
        x, y = np.log2(np.maximum(1, pool.lengths)), np.array(pool.right, dtype=float)
        xs.append(x - x.mean() if is_within else x)
        ys.append(y - y.mean() if is_within else y)
    x, y = np.concatenate(xs), np.concatenate(ys)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum()) if (x * x).sum() > 0 else math.nan
