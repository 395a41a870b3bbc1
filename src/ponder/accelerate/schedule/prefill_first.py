"""Prompts first: while any prompt is unread, nobody generates.

Paper      the default of early vLLM and of nano-vllm and mini-sglang: a step is either prefill or decode.
Equation   if any prompt is unread: whole prompts in order up to the budget, 0 to the rest; else one token to each.
Shapes     works in order of priority and arrival -> one count each.
Guarantee  exact: no answer changes, only when it comes.
Cost       best time to first token; those who generate stall as long as prompts keep arriving.
Choose     as the baseline that SARATHI is measured against, or when the first token matters most.
Differs    from first come: the two kinds of work never share a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.schedule import Work


@dataclass(frozen=True, kw_only=True)
class PrefillFirst:
    name: str = "prefill_first"

    def allot(self, works: Sequence[Work], budget: int) -> list[int]:
        if all(work.is_generating for work in works):
            return [work.num_left for work in works]
        given = []
        for work in works:
            given.append(work.num_left if budget > 0 and not work.is_generating else 0)
            budget -= given[-1]
        return given
