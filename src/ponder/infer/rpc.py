"""RPC: drop the reasoning paths that the model itself finds unlikely, and let the others vote by their probability.

Paper      Zhou et al. 2025, "Bridging Internal Probability and Self-Consistency", arXiv:2502.00511; NeurIPS 2025
Equation   y* = argmax_y sum over distinct kept paths x with y(x) = y of p(x | c);  x is kept when P(x from the higher of two
           Weibull components | log p(x)) >= keep_from, or p(x) is above the mean
Shapes     prompt -> num candidates, the winner's likeliest path first
Guarantee  biased: a vote; its error falls exponentially in num, towards that of the model's own answer distribution
Cost       num answers, all at once; no verifier; fitting takes some milliseconds
Choose     instead of self_consistency where few answers are drawn and many of them differ. Long texts: one path outweighs
           all others, and it is close to the likeliest answer. Sampling far from the model's own distribution: self_consistency.
Differs    works on log p, so that long paths do not underflow; the mixture is fitted by expectation-maximisation from the
           median, not by a general optimiser from a fixed point, and a fit that says nothing drops nothing
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from ponder.core.asks import Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import by_path_probability, voted
from ponder.infer.ops import sampled

ROUNDS = 40  # of expectation-maximisation
SHAPES = (0.02, 20.0)  # a component narrower than the second would sit on a single path
MIN_PATHS = 4  # two components have five parameters; below, nothing is dropped


@dataclass(frozen=True, kw_only=True)
class Rpc:
    num: int  # answers drawn
    keep_from: float = 0.5  # least posterior of the higher component; 0 keeps all: plain perplexity consistency
    sampling: Sampling = field(default_factory=Sampling)  # how each token is drawn; the model's own distribution unless there is a reason

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED
    needs: ClassVar[tuple[str, ...]] = ("log_p",)

    def __post_init__(self) -> None:
        if self.num < 1 or not 0 <= self.keep_from <= 1:
            raise BadField(f"rpc num={self.num}, keep_from={self.keep_from}: num must be at least 1, keep_from in [0, 1]")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn = yield from sampled(prompt, self.num, self.sampling, rng)
        weights = by_path_probability(drawn)
        paths = [i for i, w in enumerate(weights) if w > 0]
        kept = {i for i, is_kept in zip(paths, pruned([drawn[i].log_p for i in paths], self.keep_from)) if is_kept}
        outcome = voted(drawn, [w if i in kept else 0.0 for i, w in enumerate(weights)], prompt)
        return replace(outcome, diagnostics=outcome.diagnostics | {"num_paths": len(paths), "num_pruned": len(paths) - len(kept)})


def pruned(log_p: Sequence[float], keep_from: float = 0.5) -> list[bool]:
    """Which of several different paths are kept: those of the higher component, and all above the mean probability."""
    if len(set(log_p)) < MIN_PATHS:
        return [True] * len(log_p)
    ranked = sorted(range(len(log_p)), key=lambda i: log_p[i])  # sums in one order, so that the order of drawing is nothing
    y = np.asarray([log_p[i] for i in ranked], dtype=np.float64) - max(log_p)
    mean = math.log(np.exp(y).mean())
    kept = {i for i, p, x in zip(ranked, mixture(y), y) if p >= keep_from or x >= mean}
    return [i in kept for i in range(len(log_p))]


def mixture(y: np.ndarray) -> np.ndarray:
    """Posterior [N] that x = exp(y) belongs to the component of larger mean, of the two Weibull ones fitted to all."""
    high = np.where(y >= np.median(y), 0.9, 0.1)
    for _ in range(ROUNDS):
        share = float(high.mean())
        if not 1e-6 < share < 1 - 1e-6:
            return np.ones_like(y)  # one component explains everything
        top, low = weibull(y, high), weibull(y, 1 - high)
        log_odds = math.log(share / (1 - share)) + log_density(y, top) - log_density(y, low)
        high = 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
    return high if log_mean(top) >= log_mean(low) else 1 - high


Weibull = tuple[float, float]  # shape k, log of the scale


def weibull(y: np.ndarray, weights: np.ndarray) -> Weibull:
    """Weighted maximum likelihood: the root of an increasing function of k, by bisection of its logarithm."""
    log_w, mean = np.log(np.maximum(weights, 1e-300)), (weights * y).sum() / weights.sum()
    low, high = math.log(SHAPES[0]), math.log(SHAPES[1])
    for _ in range(40):
        k = math.exp((low + high) / 2)
        z = log_w + k * y
        powers = np.exp(z - z.max())
        is_below = (powers * y).sum() / powers.sum() - 1 / k - mean < 0
        low, high = ((low + high) / 2, high) if is_below else (low, (low + high) / 2)
    return k, float(z.max() + math.log(powers.sum()) - math.log(weights.sum())) / k


def log_density(y: np.ndarray, component: Weibull) -> np.ndarray:
    """log density of y = log x."""
    k, log_scale = component
    z = k * (y - log_scale)
    return math.log(k) + z - np.exp(np.minimum(z, 500))  # type: ignore[no-any-return]


def log_mean(component: Weibull) -> float:
    k, log_scale = component
    return log_scale + math.lgamma(1 + 1 / k)
