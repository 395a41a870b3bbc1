"""Public tests: 1 when the candidate's program passes the tests that its prompt shows, else 0.

Paper      visible examples as a filter: Chen et al. 2021, arXiv:2107.03374, section 4.5; Li et al. 2022, arXiv:2203.07814
Equation   value = 1[stub + code + shown tests runs to its end without an exception, within the limits]
Shapes     candidates [N] -> verdicts [N], values in {0, 1}
Guarantee  exact about the shown tests; about the hidden ones it has false positives, which a study counts
Cost       no tokens; about 50 ms of one core per different program, `seconds` at worst
Choose     for code whose prompt holds assertions or examples. Abstains where the prompt shows none that can be run.
Differs    reads the prompt alone, never a task's reference: code blocks of assertions, doctest examples, and lines such as
           `f(2) == 4` or `f(2) -> 4` in the docstring of the function to be written; equal programs run once per process
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits, Run, run_python
from ponder.verify.shown import shown_tests


@dataclass(frozen=True, kw_only=True)
class PublicTests:
    limits: Limits = field(default_factory=lambda: Limits(seconds=3.0))  # of one run
    name: str = "public_tests"

    guarantee = Guarantee.EXACT

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        stub, tests = shown_tests(prompt.question)
        if not tests:
            return tuple(ABSTAIN for _ in candidates)
        return tuple(self._verdict(stub, Code().read(c.text), tests) for c in candidates)

    def _verdict(self, stub: str, code: str | None, tests: tuple[str, ...]) -> Verdict:
        if code is None:
            return Verdict(0.0, "probability", "no code in the text")
        run = ran("\n".join((stub, code, *tests)) + "\n", self.limits)
        return Verdict(float(run.passed), "probability", run.detail or f"passed {len(tests)} shown tests")


@functools.lru_cache(maxsize=20_000)
def ran(program: str, limits: Limits) -> Run:
    return run_python(program, limits)
