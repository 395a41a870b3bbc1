"""Two models must agree: a token is as likely as the weighted product of what both say.

Paper      Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence"; of language models' next tokens as in
           Liu et al. 2021, "DExperts" (arXiv:2105.03023)
Equation   log p(x) = (1 - weight) log p_first(x) + weight log p_second(x) - log Z
Shapes     logits [R, V] of both -> logits [R, V]
Guarantee  biased: the answer is neither model's own
Cost       the second model reads and keeps every token, too: its weights, its keys, its passes
Choose     two models of like strength that were trained differently, as one on code and one on talk. weight=0 is the first alone,
           weight=1 the second, bit for bit.
Differs    weights sum to 1; those of sum s are these at a temperature of 1 / s, the plain product weight=0.5 at 0.5
"""

from dataclasses import dataclass

from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Product:
    weight: float = 0.5  # of the second model

    guarantee = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise BadField(f"product weight={self.weight}: must be in [0, 1]")

    def mix(self, first_RV: Tensor, second_RV: Tensor) -> Tensor:
        return (1 - self.weight) * first_RV + self.weight * second_RV
