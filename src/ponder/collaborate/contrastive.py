"""What a good model says more than a bad one: tokens that the amateur finds likely, too, count for less.

Paper      Li et al. 2023, "Contrastive Decoding: Open-ended Text Generation as Optimization" (arXiv:2210.15097); with both coefficients
           O'Brien, Lewis 2023, "Contrastive Decoding Improves Reasoning in Large Language Models" (arXiv:2309.09117)
Equation   log p(x) = (1 + weight) log p_expert(x) - weight log p_amateur(x) - log Z where p_expert(x) >= alpha max p_expert; 0 elsewhere
Shapes     logits [R, V] of both -> logits [R, V]
Guarantee  biased: the answer is neither model's own
Cost       the amateur reads and keeps every token, too: its weights, its keys, its passes
Choose     greedy or nearly so, an amateur a tenth of the expert's size of the same family. weight=0, alpha=0 is the expert alone, bit
           for bit. Hardly for facts and copies, where the amateur is right for good reasons.
Differs    the first paper's log p_expert - log p_amateur is the limit of a large weight at a temperature of weight
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    weight: float = 0.5  # of the amateur, taken away
    alpha: float = 0.1  # share of the expert's likeliest token's probability below which a token cannot come

    guarantee = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not (0 <= self.weight <= 100 and 0 <= self.alpha <= 1):
            raise BadField(f"contrastive weight={self.weight}, alpha={self.alpha}: weight must be in [0, 100], alpha in [0, 1]")

    def mix(self, first_RV: Tensor, second_RV: Tensor) -> Tensor:
        mixed_RV = first_RV + self.weight * (first_RV - second_RV)
        if self.alpha == 0:
            return mixed_RV
        least_R1 = first_RV.amax(-1, keepdim=True) + math.log(self.alpha)
        return torch.where(first_RV >= least_R1, mixed_RV, -math.inf)
