"""Layers whose attention is spread evenly keep more keys than those where a few keys have it all.

Paper      D2O (Wan et al. 2024, arXiv:2406.13035), section 3.2.
Equation   num_l proportional to exp(-v_l / mean v), v_l the variance of a layer's scores over keys in parts of their mean; never below `least`
           of the budget; heads of a layer are alike.
Shapes     scores [L, K, N] -> counts [L, K].
Guarantee  approximate: keys are dropped; the counts are exactly the budget's in sum.
Cost       one pass over the scores.
Choose     with scores that are sums of attention (H2O).
Differs    variances are taken relative to their mean over layers, because absolute ones depend on the length of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.keeping import PROTECTED, largest_remainders


@dataclass(frozen=True, kw_only=True)
class D2OLayers:
    least: float = 0.3  # share of the budget that every layer keeps

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise BadField(f"d2o least={self.least}: must be in [0, 1]")

    def allot(self, scores: Tensor, num: Tensor, budget: int) -> Tensor:
        spread = torch.stack([variance(layer) for layer in scores])
        parts = (-spread / spread.mean().clamp(min=1e-12)).softmax(0) * len(num)
        shares = budget * (self.least + (1 - self.least) * parts)
        return largest_remainders(shares[:, None].expand(num.shape), num, budget * num.numel())


def variance(scores: Tensor) -> Tensor:
    """Of a layer's scores [K, N] in parts of their mean, without keys that stay anyway."""
    seen = scores[(scores > -torch.inf) & (scores < PROTECTED)].double()
    return (seen / seen.mean().clamp(min=1e-12)).var(correction=0) if len(seen) else torch.zeros((), dtype=torch.float64)
