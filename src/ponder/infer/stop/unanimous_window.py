"""Unanimous window: draw answers by windows and stop after the first window that agrees with itself.

Paper      Li et al. 2024, "Escape Sky-high Cost: Early-stopping Self-Consistency" (ESC), arXiv:2401.10480
Equation   stop after window k when y_{kw+1} = ... = y_{kw+w}
Shapes     labels of the draws so far, draws left -> draws to make next
Guarantee  biased: over a uniform prior, full voting elects another answer with a chance of at most error = 2 int_0^{1/2} q^w / (q^w + (1-q)^w) dq
Cost       for shares p_i, u = sum_i p_i^w: size (1 - (1 - u)^m) / u draws on average of m windows; one round of asks per window
Choose     as the rule of `adaptive` where rounds are dear or answers run in batches anyway. beta_test stops sooner for one draw at a time.
Differs    a window in which a draw has no answer is not unanimous; the error is stated and checked, the paper bounds it by a test per window
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

NUM_CELLS = 2000  # of the midpoint rule: its relative error is below 1e-4 up to size 50


@dataclass(frozen=True, kw_only=True)
class UnanimousWindow:
    size: int = 4  # draws per window

    guarantee = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.size < 2:
            raise BadField(f"unanimous_window size={self.size}: must be at least 2; one answer always agrees with itself")

    @property
    def error(self) -> float:
        """Chance that the first unanimous window elects the rarer of two answers."""
        shares = [(2 * i + 1) / (4 * NUM_CELLS) for i in range(NUM_CELLS)]
        return sum(1 / (1 + math.exp(min(700.0, self.size * math.log((1 - q) / q)))) for q in shares) / NUM_CELLS

    def more(self, labels: Sequence[int | None], left: int) -> int:
        window = set(labels[-self.size :])
        is_unanimous = len(labels) > 0 and len(labels) % self.size == 0 and len(window) == 1 and None not in window
        return 0 if is_unanimous else min(self.size, left)
