"""Every head of every layer keeps the same number of keys.

Paper      what SnapKV (Li et al. 2024, arXiv:2404.14469) and most others do.
Equation   num_lk = budget.
Shapes     scores [L, K, N] -> counts [L, K].
Guarantee  approximate: keys are dropped; the counts are exactly the budget's.
Cost       none.
Choose     as the baseline of the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.keeping import largest_remainders


@dataclass(frozen=True, kw_only=True)
class Uniform:
    def allot(self, scores: Tensor, num: Tensor, budget: int) -> Tensor:
        return largest_remainders(torch.full(num.shape, float(budget)), num, budget * num.numel())
