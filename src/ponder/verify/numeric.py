"""Numeric: 1 when the candidate's final number is within a tolerance of a reference, else 0.

Paper      none.
Equation   value = 1[|x - reference| <= max(absolute, relative * |reference|)], in exact rational arithmetic; no number -> 0.
Shapes     candidates [N] -> verdicts [N], values in {0, 1}.
Guarantee  exact.
Cost       none.
Choose     for answers with rounding; with both tolerances 0 it is the GSM8K metric. Not for formulas: see math_equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ponder.core.asks import Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import Number, value_of


@dataclass(frozen=True, kw_only=True)
class Numeric:
    reference: str  # a number as text: "18", "0.5", "3/4", "1,200"
    absolute: float = 0.0  # largest difference that still counts
    relative: float = 0.0  # the same, as a share of |reference|
    name: str = "numeric"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if value_of(self.reference) is None:
            raise BadField(f"numeric reference={self.reference!r}: must be one number, such as '18', '0.5' or '3/4'")
        if not (0 <= self.absolute < float("inf") and 0 <= self.relative < float("inf")):
            raise BadField(f"numeric absolute={self.absolute}, relative={self.relative}: tolerances must be finite and not negative")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(float(self._is_right(c.answer or c.text)), "probability") for c in candidates)

    def _is_right(self, text: str) -> bool:
        found, reference = value_of(Number().read(text) or ""), value_of(self.reference)
        if found is None or reference is None:
            return False
        return abs(found - reference) <= max(Fraction(self.absolute), Fraction(self.relative) * abs(reference))
