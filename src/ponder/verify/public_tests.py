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

import ast
import doctest
import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee
from ponder.verify.answers import Code
from ponder.verify.sandbox import Limits, Run, run_python

BLOCK = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
EQUALS = re.compile(r"\s*(?:=+>|-+>|➞|➡|⇒|=+|(?:should |must )?returns?|is)\s*:?\s*")
GOES_ON = re.compile(r"[\w\"'\[]|\s*[-+*/%=<>]")


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


@functools.lru_cache(maxsize=4096)
def shown_tests(question: str) -> tuple[str, tuple[str, ...]]:
    """(stub to be filled, statements that raise when a program is wrong), from the code blocks of a question."""
    stubs, tests = [], list[str]()
    for block in BLOCK.findall(question):
        tree = parsed(block)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)] if tree else []
        if functions:
            stubs.append(block.rstrip())
            tests += examples(functions[-1].name, ast.get_docstring(functions[-1]) or "")
        elif tree and any(isinstance(node, ast.Assert) for node in tree.body):
            tests += [ast.unparse(node) for node in tree.body]
    return "\n".join(stubs), tuple(tests)


def parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def examples(name: str, doc: str) -> Iterator[str]:
    """Assertions for the examples in the docstring of function `name`: those of doctest, else lines that name a value."""
    try:
        found = doctest.DocTestParser().get_examples(doc)
    except ValueError:  # doctest is strict about white space
        found = []
    for example in found:
        yield from example_test(example.source.strip(), example.want.strip())
    if not found:
        yield from (test for line in doc.splitlines() for test in lines_that_say(name, line))


def example_test(source: str, want: str) -> Iterator[str]:
    """What a doctest example says: a statement to run first, or an assertion; nothing where it shows no value."""
    tree = parsed(f"({source})")
    if tree is None:
        yield source
    elif not want and isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Compare):
        yield f"assert {source}"
    elif (value := literal(want)) is not None:
        yield f"assert ({source}) == ({value})"


def lines_that_say(name: str, line: str) -> Iterator[str]:
    """`name(...) == value` for every call with constant arguments in the line that is followed by its value."""
    for start in (m.start() for m in re.finditer(rf"\b{re.escape(name)}\(", line)):
        ends = (m.end() for m in re.finditer(r"\)", line[start:]))
        end = next((start + e for e in ends if parsed(line[start : start + e]) is not None), None)
        says = EQUALS.match(line, end) if end is not None else None
        value = longest_literal(line[says.end() :]) if says else None
        if value is not None and literal(f"[{line[start + len(name) + 1 : end - 1]}]") is not None:  # type: ignore[operator]
            yield f"assert {line[start:end]} == ({value})"


def longest_literal(text: str) -> str | None:
    """The constant that `text` begins with; None where it goes on as a formula or in the middle of a word."""
    text = text.lstrip()
    starts = (text[:end].rstrip() for end in range(len(text), 0, -1))
    found = next(((value, text[len(start) :]) for start in starts if not start.endswith(",") and (value := literal(start)) is not None), None)
    if found is None or GOES_ON.match(found[1]):
        return None
    return found[0]


def literal(text: str) -> str | None:
    """`text` as Python would write it, without comments, where it is a constant; else None."""
    try:
        ast.literal_eval(text.strip())
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
