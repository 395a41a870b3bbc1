"""What drafts may still lose a request, and when its drafter is to be asked again. A part of the room, not a technique."""

from dataclasses import dataclass, field

from ponder.accelerate.length.shares import Shares

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
