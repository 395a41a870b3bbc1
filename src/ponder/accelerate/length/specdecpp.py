"""Stop drafting once a trained head thinks it too likely that some token of the draft will be refused.

Paper      Huang, Guo, Wang 2024, "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths", arXiv:2405.19715
Equation   go on while 1 - prod_{i<=k} a_i <= stop_above, a_i = P(guess i is accepted | all before it are) by the head. The best policy
           of the decision process (a pass of the drafter that is in vain against a round that ends too early) is of this form.
Shapes     drafts [N] -> one decision each, after every guess
Guarantee  exact: no answer changes, only what it costs; drawn guesses all stay, also the one at which it stopped
Cost       D x H products a guess; training: minutes of the model's own rounds
Choose     for drafters that pay for every token: a draft model, the target with layers left out. The rest are kept whole.
Differs    a_i is told by the state that guess i was drawn from and its probability, before the drafter reads it, which saves the pass
           that the paper's head looks at; trained on rounds as they come, whose texts need no mixing in of guesses
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ponder.core.draft import Guess, Spent, StepCosts, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


class Judge(Protocol):
    """Acceptance head (length/accept_head)."""

    def chances(self, drafts: Sequence[Sequence[Guess]]) -> list[float]:
        """Of each draft's last guess, that it is accepted if all before it are."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpecDecPP:
    head: Judge
    stop_above: float = 0.3  # chance of a refusal in the draft so far
    num: int = 20  # most tokens of a draft

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if not 0 <= self.stop_above <= 1 or self.num < 0:
            raise BadField(f"specdecpp stop_above={self.stop_above}, num={self.num}: stop_above must be in [0, 1], num at least 0")

    def open(self, costs: Callable[[], StepCosts]) -> "Judging":
        return Judging(self)


@dataclass
class Judging:
    settings: SpecDecPP
    reach: dict[int, float] = field(default_factory=dict)  # request -> chance that all of its draft so far is accepted

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return [self.settings.num] * len(requests)

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        for request, draft, chance in zip(requests, drafts, self.settings.head.chances(drafts), strict=True):
            self.reach[request] = chance * (self.reach.get(request, 1.0) if len(draft) > 1 else 1.0)
        return [1 - self.reach[request] <= self.settings.stop_above for request in requests]

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return [len(tree) for tree in trees]

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        return None

    def forget(self, request: int) -> None:
        self.reach.pop(request, None)
