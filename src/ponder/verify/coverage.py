"""Coverage: the share of questions that k samples solve at least once, and the law it follows.

Paper      Chen et al. 2021, arXiv:2107.03374 (estimator); Brown et al. 2024, arXiv:2407.21787 (law)
Equation   pass@k = 1 - C(n-c, k) / C(n, k) = 1 - prod_{i=n-c+1..n} (1 - k/i);  coverage(k) ~ exp(a k^b), a < 0, b < 0
Shapes     n, c, k -> probability; ks [K], coverages [K] -> (a, b)
Guarantee  unbiased: E pass@k over n independent samples is the probability that one of k is right. The law is a fit.
Cost       c products; a few Gauss-Newton steps
Choose     to say what more samples could buy, given a perfect verifier. 1 - (1 - c/n)^k is biased: never use it.
Differs    the fit starts from the least-squares line of log(-log coverage) on log k
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.errors import BadField


def pass_at_k(num: int, num_correct: int, k: int) -> float:
    """Chance that k of `num` samples, drawn without replacement, hold a correct one. Needs 1 <= k <= num."""
    if not 0 <= num_correct <= num or not 1 <= k <= num:
        raise BadField(f"pass_at_k num={num}, num_correct={num_correct}, k={k}: needs 0 <= num_correct <= num and 1 <= k <= num")
    if num - num_correct < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(num - num_correct + 1, num + 1)))


def coverage(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Mean pass@k over questions, each (num, num_correct)."""
    if not counts:
        raise BadField("coverage of no questions: give at least one (num, num_correct)")
    return math.fsum(pass_at_k(num, num_correct, k) for num, num_correct in counts) / len(counts)


@dataclass(frozen=True)
class PowerLaw:
    """coverage(k) = exp(a k^b)."""

    a: float  # log of coverage at k = 1
    b: float  # how fast it rises: negative
    rmse: float  # of the fitted points

    def at(self, k: float) -> float:
        return math.exp(self.a * k**self.b)


def fit_power_law(ks: Sequence[int], coverages: Sequence[float]) -> PowerLaw:
    """Least squares in coverage itself. Needs two points strictly between 0 and 1."""
    inner = [(math.log(k), math.log(-math.log(c))) for k, c in zip(ks, coverages, strict=True) if 0 < c < 1]
    if len({x for x, _ in inner}) < 2:
        raise BadField("fit_power_law needs coverages strictly between 0 and 1 at two different k")
    x_mean, y_mean = (sum(column) / len(inner) for column in zip(*inner))
    b = sum((x - x_mean) * (y - y_mean) for x, y in inner) / sum((x - x_mean) ** 2 for x, _ in inner)
    a = -math.exp(y_mean - b * x_mean)
    loss = squared_error(a, b, ks, coverages)
    damping = 1e-3
    for _ in range(200):  # Levenberg-Marquardt on two parameters
        da, db = damped_step(a, b, ks, coverages, damping=damping)
        better = squared_error(a + da, b + db, ks, coverages)
        if better < loss:
            a, b, loss, damping = a + da, b + db, better, damping / 10
        else:
            damping *= 10
    return PowerLaw(a, b, math.sqrt(loss / len(ks)))


def squared_error(a: float, b: float, ks: Sequence[int], coverages: Sequence[float]) -> float:
    if a > 0:
        return math.inf  # coverage above 1
    return math.fsum((math.exp(a * k**b) - c) ** 2 for k, c in zip(ks, coverages, strict=True))


def damped_step(a: float, b: float, ks: Sequence[int], coverages: Sequence[float], *, damping: float) -> tuple[float, float]:
    """Change of (a, b) that solves the damped normal equations."""
    rows = [(math.exp(a * k**b), k**b, a * k**b * math.log(k), c) for k, c in zip(ks, coverages, strict=True)]
    gradients = [(p * d_a, p * d_b, c - p) for p, d_a, d_b, c in rows]
    aa, bb = (sum(g[i] ** 2 for g in gradients) * (1 + damping) + 1e-300 for i in (0, 1))
    ab = sum(g[0] * g[1] for g in gradients)
    ra, rb = (sum(g[i] * g[2] for g in gradients) for i in (0, 1))
    determinant = aa * bb - ab**2
    return ((bb * ra - ab * rb) / determinant, (aa * rb - ab * ra) / determinant) if determinant > 0 else (0.0, 0.0)
