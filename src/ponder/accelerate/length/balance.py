"""What drafts cost and may still lose a request, and when its drafter is to be asked again. A part of the room, not a technique."""

import math
from dataclasses import dataclass, field

from ponder.accelerate.length.shares import Shares
from ponder.core.draft import StepCosts

MARGIN = 0.02  # that a draft must promise beyond plain decoding: shares are estimates
LIKELY = 0.9  # of guesses of a text that is copied: with so many requests at once that these do not pay, nobody is asked

MOST = 2.0  # steps that a balance may hold
SLOWEST = 1 / 64  # share of what is earned that is left after losses
LONGEST_NAP = 16  # steps


@dataclass
class Balance:
    """Of one request: what it saw accepted, the steps that drafts may still lose it, and how fast they come back.

    nap: steps from one asking to the next, twice as many after each that brought nothing, 0 after one that did; left: of them to come.
    """

    balance: float
    begun: float
    pace: float = 1.0
    nap: int = 0
    left: int = 0
    shares: Shares = field(default_factory=Shares)

    def pay(self, lost: float, earned: float) -> None:
        left = self.balance - lost + self.pace * earned
        if lost < 0:
            self.pace = 1.0
        elif self.balance > 0 >= left:
            self.pace = max(SLOWEST, self.pace / 2)
        self.balance = min(MOST, max(-MOST, left))

    def is_awake(self) -> bool:
        """Whether it is to be asked in this step; to be called once in each."""
        self.left = max(0, self.left - 1)
        return self.left == 0

    def asked(self, *, has_brought: bool, num: int) -> None:
        """What came of asking, with `num` requests at once: the more there are, the less of a step each is, and the longer it naps."""
        self.nap = 0 if has_brought else min(max(1, 2 * self.nap), num, LONGEST_NAP)
        self.left = self.nap


@dataclass
class Prices:
    """Of guesses, in seconds. num: most tokens of a draft."""

    costs: StepCosts
    num: int
    known: dict[int, tuple[float, float]] = field(default_factory=dict)  # by the number of requests at once

    def of(self, num_rows: int, num: int) -> float:
        """Of so many guessed tokens beside so many rows."""
        return self.costs.of(num_rows + num) - self.costs.of(num_rows) + self.costs.waiting

    def worth(self, num: int) -> float:
        """What one token costs without drafts, with so many requests at once."""
        return self._known(num)[0]

    def least(self, num: int) -> float:
        """What must be left for anybody to be asked: the price of one refused token, or infinity where no guess pays."""
        return self._known(num)[1]

    def _known(self, num: int) -> tuple[float, float]:
        if num not in self.known:
            self.known[num] = self.costs.of(num) / num, self.of(num, 1) if self._pays(num) else math.inf
        return self.known[num]

    def _pays(self, num: int) -> bool:
        """Whether guesses that come true as often as those of a copied text would make any step of `num` requests worth more."""
        least, tried = (1 + MARGIN) * num / self.costs.of(num), (round(num * share) for share in (1 / num, 0.25, 0.5, 1, 2, 4, self.num))
        return any((num + LIKELY * k) / (self.costs.of(num) + self.of(num, k)) > least for k in tried if k)
