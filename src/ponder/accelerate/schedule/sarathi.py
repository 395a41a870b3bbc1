"""Everybody who generates gets a token; what is left of the step goes to pieces of prompts.

Paper      SARATHI (Agrawal et al. 2023): chunked prefills, decode-maximal batches.
Equation   1 to each that generates; the rest of the budget to prompts in order, the last of them cut.
Shapes     works in order of priority and arrival -> one count each.
Guarantee  exact: no answer changes, only when it comes.
Cost       a step takes about as long as `chunk` tokens and those who generate, whatever prompts arrive.
Choose     always, unless a prompt's first token matters more than everybody's next.
Differs    the paper fixes the chunk; here it bounds only steps in which somebody generates, and at least `least` prompt tokens always
           go through, so that nobody starves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.errors import BadField
from ponder.core.schedule import Work, in_turn


@dataclass(frozen=True, kw_only=True)
class Sarathi:
    """chunk: prompt tokens of a step in which somebody generates, at most; least: prompt tokens of a step, at least."""

    chunk: int = 64
    least: int = 16
    name: str = "sarathi"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.chunk:
            raise BadField(f"sarathi chunk={self.chunk}, least={self.least}: least must be at least 1 and chunk at least that")

    def allot(self, works: Sequence[Work], budget: int) -> list[int]:
        num_generating = sum(work.is_generating for work in works)
        room = max(self.least, min(self.chunk, budget - num_generating) if num_generating else budget)
        prompts = iter(in_turn([work for work in works if not work.is_generating], room))
        return [1 if work.is_generating else next(prompts) for work in works]
