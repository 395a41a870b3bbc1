"""Arithmetic: whether every equation that the text states holds.

Paper      a calculator that checks the steps: Cobbe et al. 2021, arXiv:2110.14168, appendix C (there it fills in results; here it judges)
Equation   value = doubt^w,  w = stated equations (a chain a = b = c has two) whose sides differ by more than they are rounded
Shapes     candidates [N] -> verdicts [N], values in (0, 1]
Guarantee  exact about the equations that it can read; right sums in a wrong plan are false positives, which a study counts
Cost       no tokens; microseconds a candidate
Choose     for worked answers, whole or partial: steps of particle filters and searches. Abstains where no equation is stated.
Differs    reads +, -, *, / and ^ in plain text and in LaTeX, with units beside numbers; what it cannot read it passes over.
           A side written to d decimals may be off by one in the last of them; whole numbers must be equal
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import tail
from ponder.verify.equations import equations, plain


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    doubt: float = 0.1  # factor of the value for each equation that does not hold
    name: str = "arithmetic"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if not 0 < self.doubt < 1:
            raise BadField(f"arithmetic doubt={self.doubt}: must lie between 0 and 1")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(self._verdict(c.text) for c in candidates)

    def _verdict(self, text: str) -> Verdict:
        held = [holds for line in plain(tail(text)).splitlines() for holds in equations(line)]
        if not held:
            return ABSTAIN
        wrong = held.count(False)
        return Verdict(self.doubt**wrong, "probability", f"{wrong} of {len(held)} equations do not hold")
