"""First come, first served: a prompt is read whole, in one step, beside those who generate.

Paper      Orca (Yu et al., OSDI 2022): iteration-level scheduling; Flover joins in the same way.
Equation   tokens of sequence i = all it could compute, in order of arrival, until the step's budget is passed.
Shapes     works in order of priority and arrival -> one count each.
Guarantee  exact: no answer changes, only when it comes.
Cost       a step may take as long as the longest prompt, and everybody who generates waits for it.
Choose     prompts are short, or only the total time counts.
Differs    from SARATHI: prompts are not cut; a step may exceed its budget by one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.schedule import Work


@dataclass(frozen=True, kw_only=True)
class FirstCome:
    name: str = "first_come"

    def allot(self, works: Sequence[Work], budget: int) -> list[int]:
        given = []
        for work in works:
            given.append(work.num_left if budget > 0 or work.is_generating else 0)
            budget -= given[-1]
        return given
