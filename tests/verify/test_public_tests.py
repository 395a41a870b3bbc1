"""Public tests are read out of the prompt alone, and judge what they show: not what a task holds back."""

import ast

import pytest

from ponder.core.asks import Candidate, chat
from ponder.tasks.humaneval import HumanEval
from ponder.tasks.mbpp import Mbpp
from ponder.verify.answers import Code
from ponder.verify.public_tests import PublicTests
from ponder.verify.shown import examples, shown_tests

STUB = 'def twice(x: int) -> int:\n    """Twice x.\n    >>> twice(2)\n    4\n    >>> twice(-1)\n    -2\n    """\n'
FILLED = chat(f"Complete this Python function.\n```python\n{STUB}```", answers=Code())
ASKED = chat("Write twice.\nYour code must pass these tests:\n```python\nassert twice(2) == 4\n```\nOne block.", answers=Code())
SILENT = chat("Write a program.", answers=Code())


def values(prompt, *codes):
    candidates = tuple(Candidate(f"```python\n{code}\n```" if code else "", code or None) for code in codes)
    return [v.value for v in PublicTests().judge(prompt, candidates, ())]


def test_right_wrong_and_nothing():
    right, square, body = "def twice(x):\n    return 2 * x", "def twice(x):\n    return x * x", "    return 2 * x"
    assert values(FILLED, right, square, body, "", "def f(:") == [1, 0, 1, 0, 0]
    assert values(ASKED, right, square) == [1, 1], "x * x passes the shown test: a false positive"
    assert values(SILENT, right) == [None]


def test_a_program_that_never_ends_is_no_pass():
    assert values(ASKED, "def twice(x):\n    while True: pass") == [0]


@pytest.mark.parametrize(
    "doc, wanted",
    [
        ("f(2) == 4, as is known", ["assert f(2) == (4)"]),
        ("For example:\nf('a(b') ➞ [1, 2]\nf( (1, 2) ) -> None", ["assert f('a(b') == ([1, 2])", "assert f( (1, 2) ) == (None)"]),
        ("f(2) should return '4'; f(3) ==> 6.5 # more.", ["assert f(2) == ('4')", "assert f(3) == (6.5)"]),
        (">>> y = 3\n>>> f(y)\n9\n>>> f(0)\nTraceback (most recent call last):\n  ...\nValueError", ["y = 3", "assert (f(y)) == (9)"]),
        ("f(x) is a number; g(2) == 4; f(2) is odd", []),
        ("f(2", []),
        ('f(2) = 1 + 9 = 10; f(3) == ""aaa"; f(n) == 4; f(5) is 4 because of that', ["assert f(5) == (4)"]),
        (">>> f(1) == [1]\n>>> f(2)\n>>> f(3) [4]", ["assert f(1) == [1]"]),
    ],
)
def test_examples_in_a_docstring(doc, wanted):
    assert list(examples("f", doc)) == wanted


def test_humaneval_prompts_show_tests_that_the_reference_passes():
    """Whatever a docstring shows is Python; what it shows wrongly (4 of 136 prompts fail their own reference) stays a false negative."""
    items = HumanEval().items("dev")
    shown = {item.id: shown_tests(item.prompt.question) for item in items}
    assert sum(bool(tests) for _, tests in shown.values()) >= 60
    assert all(ast.parse("\n".join((stub, *tests))) for stub, tests in shown.values())


def test_mbpp_holds_tests_back():
    item = Mbpp(num_visible=1, name="mbpp-one").items("test")[1]
    _, tests = shown_tests(item.prompt.question)
    assert len(tests) == 1 and item.reference.count("assert") == 3
    assert item.id == Mbpp().items("test")[1].id and item.reference == Mbpp().items("test")[1].reference
    memory = f"{tests[0].removeprefix('assert ').partition('(')[0]}"
    cheat = f"def {memory}(*a):\n    return {tests[0].partition(' == ')[2]}"
    (verdict,) = PublicTests().judge(item.prompt, (Candidate(cheat, cheat),), ())
    assert verdict.value == 1 and not Mbpp(num_visible=1).score(item, cheat), "knowing the shown test passes it, and no more"
