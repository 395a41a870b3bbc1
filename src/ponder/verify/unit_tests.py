"""Unit tests: 1 when the candidate's program passes the given tests, else 0.

Paper      Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374), functional correctness.
Equation   value = 1[setup + code + tests runs to its end without an exception, within the limits].
Shapes     candidates [N] -> verdicts [N], values in {0, 1}; detail says what failed, and the isolation that was had.
Guarantee  exact for programs that do not attack the tests; isolation as stated in verify/sandbox.py: always time, memory, CPU and
           process limits; network, file and process isolation by namespaces on Linux where the system allows them, else partly.
Cost       no tokens; about 50 ms of one core per different program, `seconds` at worst.
Choose     to score HumanEval and MBPP, or as a verifier where tests are known. Set require_namespaces on shared machines.
Differs    equal programs run once; a candidate without code gets 0, not an abstention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.asks import Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits, run_python


@dataclass(frozen=True, kw_only=True)
class UnitTests:
    tests: str  # program text that raises when the candidate is wrong
    setup: str = ""  # program text before the candidate's code: imports, helpers, the stub to be filled
    limits: Limits = field(default_factory=Limits)
    name: str = "unit_tests"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        codes = [Code().read(c.text) for c in candidates]
        judged = {code: self._verdict(code) for code in set(codes)}
        return tuple(judged[code] for code in codes)

    def _verdict(self, code: str | None) -> Verdict:
        if code is None:
            return Verdict(0.0, "probability", "no code in the text")
        run = run_python(f"{self.setup}\n{code}\n{self.tests}\n", self.limits)
        return Verdict(float(run.passed), "probability", run.detail or f"passed ({run.isolation})")
