"""Multinomial resampling: independent draws in proportion to the weights.

Paper      Gordon, Salmond and Smith 1993
Equation   a_m ~ Categorical(W), independent, m = 1 .. M
Shapes     log_w [N] -> ancestors [M] int64
Guarantee  unbiased: E #{m : a_m = n} = M W_n
Cost       O(N M); M random numbers
Choose     where a proof needs independent draws. Otherwise systematic: every other scheme has less variance.
"""

from torch import Tensor

from ponder.core.rng import Rng
from ponder.core.weights import check_weights


def multinomial(log_w: Tensor, num: int, rng: Rng) -> Tensor:
    return rng.categorical(check_weights(log_w).expand(num, -1))
