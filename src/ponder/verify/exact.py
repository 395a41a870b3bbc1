"""Exact: 1 when the candidate's answer is the same as a reference under the prompt's reader, else 0.

Paper      none; the exact-match metric.
Equation   value = 1[answers.same(answer, reference)]; no answer -> 0.
Shapes     candidates [N] -> verdicts [N], values in {0, 1}.
Guarantee  exact.
Cost       none.
Choose     to score a task, or as the oracle in an experiment. Not for work without a reference.
Differs    sameness is the prompt's own notion (numbers, option letters, phrases), not equality of strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Exact:
    reference: str  # canonical answer, as the prompt's reader gives it
    name: str = "exact"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        right = (c.answer is not None and prompt.answers.same(c.answer, self.reference) for c in candidates)
        return tuple(Verdict(float(r), "probability") for r in right)
