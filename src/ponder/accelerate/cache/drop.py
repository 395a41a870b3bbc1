"""Keys that are not kept are gone.

Paper      what H2O, SnapKV and most others do with them.
Equation   nothing is done.
Shapes     view, kept slots of each head -> None.
Guarantee  approximate: keys are dropped.
Cost       none.
Choose     as the baseline of those that merge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ponder.core.evidence import View


@dataclass(frozen=True, kw_only=True)
class Drop:
    has_rest: ClassVar[bool] = False

    def evict(self, view: View, kept: Sequence[Tensor]) -> None:
        return None

    def rest(self, view: View, kept: Sequence[Tensor]) -> None:
        return None
