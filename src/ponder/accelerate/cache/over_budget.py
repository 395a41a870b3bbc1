"""Keys are dropped whenever a head holds more than its budget and some slack.

Paper      H2O (Zhang et al. 2023, arXiv:2306.14048), which has no slack.
Equation   next = the count of tokens at which the fullest head holds budget + slack.
Shapes     counts of tokens -> count.
Guarantee  approximate: keys are dropped.
Cost       a look at all keys per `slack` tokens, once the budget is full.
Choose     long answers in bounded memory. With slack=16 a head's last page fills up in between.
"""

from dataclasses import dataclass

from ponder.core.errors import BadField


@dataclass(frozen=True, kw_only=True)
class OverBudget:
    slack: int = 16  # keys beyond the budget

    def __post_init__(self) -> None:
        if self.slack < 1:
            raise BadField(f"slack={self.slack}: must be at least 1 key")

    def next(self, num_tokens: int, *, num_prompt: int, num_held: int, budget: int) -> int:
        return num_tokens + max(1, budget + self.slack - num_held)
