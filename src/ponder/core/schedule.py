"""How a step's tokens are shared out among the sequences that run: the seam of the schedulers (accelerate/schedule).

The loop admits waiting sequences in order of priority, then of arrival, and hands the scheduler what runs in that order. Nothing
a scheduler decides changes an answer, only when it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """What a scheduler sees of one running sequence. num_left: tokens it could compute now; 1 while it generates."""

    num_left: int
    is_generating: bool


class Scheduler(Protocol):
    """Tokens that each sequence may compute in this step, 0 to num_left each.

    Must give at least one token to somebody. `budget`: tokens that a step should not exceed.
    """

    @property
    def name(self) -> str: ...

    def allot(self, works: Sequence[Work], budget: int) -> list[int]: ...


def in_turn(works: Sequence[Work], budget: int) -> list[int]:
    """As many tokens as the budget still has, to one after the other."""
    given = []
    for work in works:
        given.append(min(work.num_left, budget))
        budget -= given[-1]
    return given
