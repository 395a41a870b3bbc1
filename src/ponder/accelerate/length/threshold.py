"""Keep a guess while the drafter thinks that the whole path up to it will be accepted.

Paper      Huang, Guo, Wang 2024, "SpecDec++", arXiv:2405.19715: the best stopping rule is a threshold on the chance that a token so far
           is refused; with the drafter's own probabilities it is what assisted generation calls the confidence threshold
Equation   token i stays while prod of chances on its path >= least
Shapes     trees with chances [M] -> one count each
Guarantee  exact: no answer changes, only what it costs
Cost       O(M)
Choose     for drafters that say how sure they are and guess cheaply; trees without chances are kept whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponder.core.draft import Guess, Spent, StepCosts, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Threshold:
    least: float = 0.4  # chance of a whole path
    num: int = 8  # most tokens of a draft

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or self.num < 0:
            raise BadField(f"threshold least={self.least}, num={self.num}: least must be in [0, 1], num at least 0")

    def open(self, costs: Callable[[], StepCosts]) -> "Threshold":
        return self

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return [self.num] * len(requests)

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        return [math.prod(guess.chance for guess in draft) >= self.least for draft in drafts]

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return [self._kept(tree) for tree in trees]

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        return None

    def forget(self, request: int) -> None:
        return None

    def _kept(self, tree: Tree) -> int:
        """Tokens before the first that is too unlikely; in a tree of falling chances nothing better comes later."""
        if tree.chances is None:
            return len(tree)
        reach: list[float] = []
        for chance, parent in zip(tree.chances, tree.parents):
            reach.append(chance * (reach[parent] if parent >= 0 else 1.0))
        return next((i for i, r in enumerate(reach) if r < self.least), len(tree))
