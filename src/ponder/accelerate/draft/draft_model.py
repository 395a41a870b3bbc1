"""A smaller model with the same tokens draws ahead, by the noise that the target will draw by.

Paper      Leviathan, Kalman, Matias 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318
Equation   t_i ~ q(. | context, t_<i), drawn at position i with the target's own noise, while q(t_i) >= least and i <= num
Shapes     contexts -> chains of at most min(num, room) tokens with chances, and with log q [M, V] where `is_weighed`
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       a pass of the small model per token drafted, one for all requests; its weights and keys
Choose     where a model of a tenth of the cost says mostly the same: the 0.5B for the 1.5B. On two cores the same weights in fewer bits
           are read hardly faster, so an int4 twin pays only where the target is read in many bits.
Differs    the paper's noise is independent; shared noise makes equal draws as likely as the two distributions allow one uniform number
           to do. is_weighed gives log q for the `rejection` acceptor, which needs it.
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.accelerate.draft.chains import Chaining
from ponder.core.draft import Host, Needs, Scope, Twin
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    model: str | None = None  # name or file; None: the target itself, in other weights
    weights: str | None = None  # format; None: the usual one
    num: int = 4  # most tokens of a draft
    least: float = 0.3  # probability below which a token ends the draft
    is_weighed: bool = False  # says what each token was drawn from

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if self.num < 1 or not 0 <= self.least <= 1:
            raise BadField(f"draft_model num={self.num}, least={self.least}: num must be at least 1, least in [0, 1]")

    def open(self, host: Host) -> Chaining:
        return Chaining(host, host.runner(Twin(model=self.model, weights=self.weights)), self.num, self.least, self.is_weighed)
