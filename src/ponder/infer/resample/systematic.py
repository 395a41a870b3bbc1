"""Systematic resampling: M evenly spaced probes that share one random offset.

Paper      Carpenter, Clifford and Fearnhead 1999; Douc, Cappe and Moulines 2005, arXiv:cs/0507025
Equation   a_m = min{ n : W_1 + ... + W_n > (m + u) / M },  u ~ U[0, 1),  m = 0 .. M-1
Shapes     log_w [N] -> ancestors [M] int64, non-decreasing
Guarantee  unbiased: E #{m : a_m = n} = M W_n, and every count is floor or ceil of M W_n
Cost       O(N + M log N); one random number
Choose     by default. Not where a proof needs independent draws: use multinomial.
"""

import torch
from torch import Tensor

from ponder.core.rng import Rng
from ponder.core.weights import inverse_cdf, normalize


def systematic(log_w: Tensor, num: int, rng: Rng) -> Tensor:
    weights = normalize(log_w)
    offset = rng.uniform([(num * weights.cumsum(0)) % 1])
    return inverse_cdf(weights, (torch.arange(num) + offset) / num)
