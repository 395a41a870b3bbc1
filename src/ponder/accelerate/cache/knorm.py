"""Keep the keys of small norm.

Paper      Devoto et al. 2024, "A simple and effective L2 norm-based strategy for KV cache compression", arXiv:2406.11430.
Equation   score_j = -||k_j||.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds everything.
Cost       one norm per key: no attention is computed again.
Choose     as the cheapest policy that looks at content; it knows no question, so a second one is no worse off than the first.
"""

from dataclasses import dataclass

from torch import Tensor

from ponder.core.evidence import Needs, View


@dataclass(frozen=True, kw_only=True)
class Knorm:
    @property
    def needs(self) -> Needs:
        return Needs()

    def score(self, view: View, budget: int) -> Tensor:
        return -view.keys.float().norm(dim=-1)
