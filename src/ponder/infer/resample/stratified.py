"""Stratified resampling: one probe in each of M equal strata.

Paper      Kitagawa 1996; Douc, Cappe and Moulines 2005, arXiv:cs/0507025
Equation   a_m = min{ n : W_1 + ... + W_n > (m + u_m) / M },  u_m ~ U[0, 1) independent,  m = 0 .. M-1
Shapes     log_w [N] -> ancestors [M] int64, non-decreasing
Guarantee  unbiased: E #{m : a_m = n} = M W_n
Cost       O(N + M log N); M random numbers
Choose     where systematic's single offset could resonate with an ordered population. Variance never above multinomial's.
"""

import torch
from torch import Tensor

from ponder.core.rng import Rng
from ponder.core.weights import inverse_cdf, normalize


def stratified(log_w: Tensor, num: int, rng: Rng) -> Tensor:
    weights = normalize(log_w)
    offsets = rng.uniform([num * weights.cumsum(0) - m for m in range(num)])
    return inverse_cdf(weights, (torch.arange(num) + offsets) / num)
