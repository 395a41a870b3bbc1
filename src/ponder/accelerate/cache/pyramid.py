"""Lower layers keep more keys than upper ones, in even steps.

Paper      PyramidKV (Cai et al. 2024, arXiv:2406.02069), section 4.2.
Equation   num_l falls in a straight line from 2 budget - least to least = budget / beta, over layers; heads of a layer are alike.
Shapes     scores [L, K, N] -> counts [L, K].
Guarantee  approximate: keys are dropped; the counts are exactly the budget's in sum.
Cost       none.
Choose     small budgets: lower layers spread their attention, upper ones gather it.
Differs    the window counts as part of a layer's keys, and no layer gets less than `least` keys while the budget has as many.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.keeping import largest_remainders


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    beta: float = 20.0  # budget / keys of the top layer
    least: int = 32  # keys of a layer, at least

    def __post_init__(self) -> None:
        if self.beta < 1 or self.least < 0:
            raise BadField(f"pyramid beta={self.beta}, least={self.least}: beta must be at least 1 and least at least 0")

    def allot(self, scores: Tensor, num: Tensor, budget: int) -> Tensor:
        longest = float(num.max())
        low = min(float(budget), max(budget / self.beta, self.least, 2 * budget - longest))
        shares = torch.linspace(2 * budget - low, low, len(num), dtype=torch.float64) if len(num) > 1 else torch.tensor([float(budget)])
        return largest_remainders(shares[:, None].expand(num.shape), num, budget * num.numel())
