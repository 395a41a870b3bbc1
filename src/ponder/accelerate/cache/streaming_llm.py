"""Keep the first tokens and the last ones.

Paper      StreamingLLM (Xiao et al. 2023, arXiv:2309.17453), section 3.
Equation   the first `sinks` keys and the last budget - sinks.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: what lies between is forgotten; exact under a budget that holds everything.
Cost       none: it looks at positions alone.
Choose     endless texts whose past does not matter, and as the baseline that anything that looks must beat.
Differs    keys keep their positions, where the paper numbers them anew inside the cache: within the trained length that is the
           better choice, beyond it the paper's is needed.
"""

from dataclasses import dataclass

from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class StreamingLLM:
    sinks: int = 4  # first tokens that stay

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise BadField(f"streaming sinks={self.sinks}: must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs()

    def score(self, view: View, budget: int) -> Tensor:
        return view.positions.double().where(view.positions >= self.sinks, protected(view.positions))
