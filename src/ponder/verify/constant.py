"""Constant: the same verdict for every candidate; the unit element of its role.

Paper      none.
Equation   value = c.
Shapes     candidates [N] -> verdicts [N].
Guarantee  exact.
Cost       none.
Choose     in tests, and as the baseline that any verifier must beat: with it, best-of-N is the first sample.
Differs    value None abstains on everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Constant:
    value: float | None = 0.5  # None: abstain
    name: str = "constant"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        verdict = ABSTAIN if self.value is None else Verdict(self.value)
        return tuple(verdict for _ in candidates)
