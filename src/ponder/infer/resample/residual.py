"""Residual resampling: whole copies first, chance only for the remainders.

Paper      Liu and Chen 1998
Equation   floor(M W_n) copies of each n; the other R are drawn from (M W_n - floor(M W_n)) / R
Shapes     log_w [N] -> ancestors [M] int64
Guarantee  unbiased: E #{m : a_m = n} = M W_n, and no count is below floor(M W_n)
Cost       O(N R); R < N random numbers
Choose     when a few particles are much heavier than the rest and order must not matter. Else systematic.
"""

import torch
from torch import Tensor

from ponder.core.rng import Rng
from ponder.core.weights import normalize


def residual(log_w: Tensor, num: int, rng: Rng) -> Tensor:
    share = num * normalize(log_w)
    copies = (share + 1e-12).floor()  # a share of 2 that rounds to 1.999... is 2
    sure = torch.arange(len(log_w)).repeat_interleave(copies.long())
    left = num - len(sure)
    if left == 0:
        return sure
    rest = (share - copies).clamp_min(0.0).log()
    return torch.cat([sure, rng.categorical(rest.expand(left, -1))])
