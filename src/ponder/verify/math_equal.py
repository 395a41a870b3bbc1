"""Math equal: 1 when the candidate's final formula is mathematically equal to a reference, else 0.

Paper      math-verify (Kydlíček, 2025), https://github.com/huggingface/Math-Verify.
Equation   value = 1[same(read(text), reference)] with verify.answers.Latex; no formula -> 0.
Shapes     candidates [N] -> verdicts [N], values in {0, 1}.
Guarantee  exact up to math-verify: a pair that it cannot parse, or not within `seconds`, counts as different.
Cost       no tokens; about 10 ms of one core per new pair, `seconds` at worst, 1 s once to start the worker process.
Choose     for MATH-style answers. For plain numbers `numeric` is enough and needs no sympy.
Differs    asked in both directions, so that it is symmetric; the time limit works in any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import Latex


@dataclass(frozen=True, kw_only=True)
class MathEqual:
    reference: str  # LaTeX or a plain number, without \\boxed
    seconds: float = 5.0  # wall time for one comparison
    name: str = "math_equal"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        reader = Latex(seconds=self.seconds)
        found = (reader.read(c.text) for c in candidates)
        return tuple(Verdict(float(f is not None and reader.same(f, self.reference)), "probability") for f in found)
