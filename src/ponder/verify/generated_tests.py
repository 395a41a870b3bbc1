"""Generated tests: the model writes tests for the question; programs that agree with each other and with many tests win.

Paper      Chen et al. 2022, "CodeT: Code Generation with Generated Tests" (arXiv:2207.10397): dual execution agreement.
Equation   value = |{programs that pass the same tests as the candidate's}| x |{tests that it passes}|
Shapes     candidates [N] -> verdicts [N], kind "score": 0 to N x max_tests
Guarantee  exact (the stated value for those tests); as a sign of rightness it depends on the model: measure it with verify.quality.
Cost       `num` replies of up to max_tokens per question, once for all candidates, and one sandboxed run per different program
Choose     for code whose prompt shows no tests, or too few, with several candidates. Shown tests that are right: public_tests.
Differs    a reply may hold any assertions on the function that the candidates define; tests that do not compile or do not call it
           are dropped, equal ones count once. A program that hangs or ends the process in one test passes none.
"""

import ast
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Extend, Extension, Prefix, Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import hash_seed
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits, run_python
from ponder.verify.shown import parsed, shown_tests

REQUEST = "Do not write the function. Write {num} assert statements that test `{name}`, one a line, each with the value that it must return."
NO_CODE = Verdict(0.0, "score", "no code in the text")
TRIAL = """
_space, _passed = {{"__name__": "candidate"}}, []
exec(compile({program!r}, "program", "exec"), _space)
for _test in {tests!r}:
    try:
        exec(_test, dict(_space))
        _passed.append("1")
    except BaseException:
        _passed.append("0")
raise RuntimeError({mark!r} + "".join(_passed))
"""  # the sandbox throws output away, so that it comes out as an exception's text, behind a mark that the program cannot know


@dataclass(frozen=True, kw_only=True)
class GeneratedTests:
    num: int = 2  # replies with tests
    per_reply: int = 5  # tests that a reply is asked for
    max_tests: int = 32  # most different tests that count
    max_tokens: int = 200  # of one reply
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))
    limits: Limits = field(default_factory=lambda: Limits(seconds=3.0))  # of one program, all tests together
    seed: int = 0
    name: str = "generated_tests"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if min(self.num, self.per_reply, self.max_tokens) < 1 or not 1 <= self.max_tests <= 100:
            raise BadField(f"{self}: num, per_reply and max_tokens must be at least 1, max_tests between 1 and 100")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        name = function_under_test(candidates)
        if name is None:
            return ()
        request = f"{prompt.question}\n{REQUEST.format(num=self.per_reply, name=name)}"
        asked = Prompt(messages=(("user", request),), prefill=f"```python\nassert {name}(", stop=("\n```",), max_tokens=self.max_tokens)
        seeds = (hash_seed(self.seed, prompt.question, i) for i in range(self.num))
        return tuple(Extend(prefix=Prefix(asked), seed=seed, sampling=self.sampling) for seed in seeds)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        name, codes = function_under_test(candidates), [Code().read(c.text) for c in candidates]
        replies = [f"assert {name}({a.prefix.text}" for a in answers if isinstance(a, Extension) and a.prefix.text]
        tests = tuple(dict.fromkeys(test for reply in replies for test in written_tests(reply, name or "")))[: self.max_tests]
        if not tests:
            return tuple(ABSTAIN for _ in candidates)
        stub, _ = shown_tests(prompt.question)
        passed = {code: self.passed(f"{stub}\n{code}", tests) for code in dict.fromkeys(codes) if code is not None}
        agreeing = Counter(passed[code] for code in codes if code is not None)
        return tuple(verdict(passed[code], agreeing, len(tests)) if code is not None else NO_CODE for code in codes)

    def passed(self, program: str, tests: tuple[str, ...]) -> frozenset[int]:
        """Which of the tests the program passes; none where it does not come to their end."""
        mark = secrets.token_hex(8)
        _, _, bits = run_python(TRIAL.format(program=program, tests=tests, mark=mark), self.limits).detail.partition(mark)
        return frozenset(i for i, bit in enumerate(bits) if bit == "1") if len(bits) == len(tests) else frozenset()


def verdict(passed: frozenset[int], agreeing: Counter[frozenset[int]], num_tests: int) -> Verdict:
    programs = agreeing[passed]
    return Verdict(float(programs * len(passed)), "score", f"passes {len(passed)} of {num_tests} generated tests, as {programs} programs do")


def function_under_test(candidates: Sequence[Candidate]) -> str | None:
    """The function that most candidates define last."""
    trees = (parsed(code) for c in candidates if (code := Code().read(c.text)) is not None)
    found = [[n.name for n in tree.body if isinstance(n, ast.FunctionDef)] for tree in trees if tree]
    names = Counter(functions[-1] for functions in found if functions)
    return names.most_common(1)[0][0] if names else None


def written_tests(reply: str, name: str) -> Iterator[str]:
    """The assertions on `name` in a reply, in the form that their syntax has; a test may go over several lines."""
    lines = reply.replace("```", "").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("assert ")]
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        trees = (parsed("\n".join(lines[start:stop])) for stop in range(end, start, -1))
        tree = next((t for t in trees if t and len(t.body) == 1), None)
        if tree and isinstance(tree.body[0], ast.Assert) and calls(tree, name):
            yield ast.unparse(ast.Assert(test=tree.body[0].test, msg=None))


def calls(tree: ast.Module, name: str) -> bool:
    return any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name for n in ast.walk(tree))
