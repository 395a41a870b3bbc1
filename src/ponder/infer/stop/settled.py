"""Settled: stop as soon as the draws that are left cannot change the vote any more.

Paper      none; counting, as on election night
Equation   stop when v1 - v2 > left;  else draw floor((left - v1 + v2) / 2) + 1, the fewest after which that can be so
Shapes     labels of the draws so far, draws left -> draws to make next
Guarantee  exact: always the answer of full voting, whatever the distribution of answers
Cost       between floor(N/2) + 1 draws, when all agree, and N; about log2 N rounds
Choose     as the rule of `adaptive` instead of plain voting, always. beta_test and unanimous_window save more and may err.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.guarantee import Guarantee
from ponder.core.votes import leading_two


@dataclass(frozen=True, kw_only=True)
class Settled:
    guarantee = Guarantee.EXACT
    error = 0.0

    def more(self, labels: Sequence[int | None], left: int) -> int:
        first, second = leading_two(labels)
        lead = first - second
        return 0 if lead > left else (left - lead) // 2 + 1 if left else 0
