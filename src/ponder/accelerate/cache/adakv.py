"""Heads of a layer share their budget: whoever has the larger scores keeps more.

Paper      Ada-KV (Feng et al. 2024, arXiv:2407.11550), algorithm 1 and section 3.4 (safeguard).
Equation   each head keeps its best `safe` of the budget; the rest of a layer's budget goes to the largest scores of all its heads.
Shapes     scores [L, K, N] -> counts [L, K].
Guarantee  approximate: keys are dropped; each layer's counts are exactly its budget in sum.
Cost       one sort of all scores of a layer.
Choose     heads of unequal focus, which is most models; needs pages that may be ragged, as ours are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField


@dataclass(frozen=True, kw_only=True)
class AdaKV:
    safe: float = 0.2  # share of the budget that every head keeps

    def __post_init__(self) -> None:
        if not 0 <= self.safe <= 1:
            raise BadField(f"adakv safe={self.safe}: must be in [0, 1]")

    def allot(self, scores: Tensor, num: Tensor, budget: int) -> Tensor:
        return torch.stack([self._of_layer(scores[layer], num[layer], budget) for layer in range(len(num))])

    def _of_layer(self, scores: Tensor, num: Tensor, budget: int) -> Tensor:
        num_heads, num_slots = scores.shape
        is_held = torch.arange(num_slots) < num[:, None]
        rank = scores.masked_fill(~is_held, -math.inf).sort(dim=1, descending=True, stable=True).indices.argsort(1)
        num_safe = max(1, int(self.safe * budget)) if self.safe else 0
        first = torch.where(rank < num_safe, math.inf, scores.double()).masked_fill(~is_held, -math.inf)
        total = min(budget * num_heads, int(num.sum()))
        best = first.flatten().sort(descending=True, stable=True).indices[:total]
        return (best // num_slots).bincount(minlength=num_heads)
