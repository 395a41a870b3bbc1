"""Beta test: stop when the leading answer is very probably the more frequent of the two leading ones.

Paper      Aggarwal et al. 2023, "Let's Sample Step by Step: Adaptive-Consistency", arXiv:2305.11860
Equation   stop when P(share of the leader > 1/2 | v1, v2) = 1 - I_{1/2}(v1 + 1, v2 + 1) >= confidence, uniform prior on the share
Shapes     labels of the draws so far, draws left -> draws to make next
Guarantee  biased: over the prior, full voting elects another answer with a chance of at most 1 - confidence
Cost       between ceil(log2(1 / (1 - confidence))) - 1 draws and all; one round of asks per `batch` draws
Choose     as the rule of `adaptive`. Larger batches where rounds are dear; unanimous_window where answers come by windows anyway.
Differs    I is a finite binomial sum, so there is no numerical error; draws without an answer do not count
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.votes import leading_two


@dataclass(frozen=True, kw_only=True)
class BetaTest:
    confidence: float = 0.95  # probability at which it stops
    batch: int = 1  # draws per round

    guarantee = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1 or self.batch < 1:
            raise BadField(f"beta_test confidence={self.confidence}, batch={self.batch}: confidence must be in (0.5, 1), batch at least 1")

    @property
    def error(self) -> float:
        return 1.0 - self.confidence

    def more(self, labels: Sequence[int | None], left: int) -> int:
        first, second = leading_two(labels)
        return 0 if leads(first, second) >= self.confidence else min(self.batch, left)


def leads(first: int, second: int) -> float:
    """P(share > 1/2) after that many votes each, under a uniform prior: P(Binomial(first + second + 1, 1/2) <= first)."""
    num = first + second + 1
    return sum(math.comb(num, j) for j in range(first + 1)) / 2**num
