"""The same number of tokens every time.

Paper      Leviathan, Kalman, Matias 2023, arXiv:2211.17192: gamma
Equation   room = num
Shapes     requests -> one count each
Guarantee  exact: no answer changes, only what it costs
Cost       none
Choose     to measure a drafter; 0 switches guessing off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponder.core.draft import Spent, StepCosts, Tree, Verified, always
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Fixed:
    num: int = 4  # tokens of every draft

    guarantee = Guarantee.EXACT
    goes_on = staticmethod(always)

    def __post_init__(self) -> None:
        if self.num < 0:
            raise BadField(f"fixed num={self.num}: must be at least 0")

    def open(self, costs: Callable[[], StepCosts]) -> "Fixed":
        return self

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return [self.num] * len(requests)

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return [len(tree) for tree in trees]

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        return None

    def forget(self, request: int) -> None:
        return None
