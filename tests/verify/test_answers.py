"""Readers find the answer, never raise, read their own canonical form back, and `same` is an equivalence."""

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.asks import WholeText
from ponder.verify.answers import Choice, Code, Latex, Number, OneOf, ShortText, value_of

READERS = [
    Number(),
    Latex(seconds=2.0),
    Choice(),
    Choice(options=("the cat", "a dog", "fish", "cow")),
    ShortText(),
    OneOf(options=("the cat", "a dog")),
    Code(),
    WholeText(),
]
EQUIVALENCES = [r for r in READERS if not isinstance(r, Latex)]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="0123456789.,-/$%\\{}()=ABCDx \n#`", max_size=40),
    st.sampled_from(["answer is", "####", "\\boxed{", "```python\n", "\\frac{1}{2}", "-3", "1/0", "(B)", "def f():\n  return 1"]),
)

NUMBERS = {
    "so it costs $1,200.50.": "1200.5",
    "#### 18": "18",
    "First 3. The answer is 7. Then 9.": "7",
    "The answer is 5 * 3 = 15 apples in 2 days": "15",
    "\\boxed{\\frac{3}{4}}": "0.75",
    "\\boxed{\\dfrac{1}{3}}": "1/3",
    "answer: -3": "-3",
    "answer is:\n7": "7",
    "**Answer:** 12": "12",
    "10 - 3 = 7.": "7",
    "x-5": "5",
    "minus: -$5": "-5",
    "50%": "50",
    "1,2,3": "3",
    "1,234,567": "1234567",
    "−4": "-4",
    "0.50": "0.5",
    "007": "7",
    "1e3": "1000",
    ".5": "0.5",
    "2/4": "0.5",
    "1/0": None,
    "none at all": None,
    "": None,
    "9" * 5000: None,
    "\u0661\u0662": None,
}
CHOICES = {
    "B": "B", "(B)": "B", "The answer is (C).": "C", "B. a dog": "B", "I think it is the dog.": "B", "**D**": "D", "Answer: B": "B",
    "answer is a cat": "A", "None": None, "A cat. No, the answer is D": "D", "Cats and dogs": None, "": None, "Not (A) but (C)": "C",
}  # fmt: skip
FORMULAS = {
    "so \\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}": "(3,\\frac{\\pi}{2})",
    "\\boxed{1} no, \\boxed{\\frac{a{b}}{c}}": "\\frac{a{b}}{c}",
    "The answer is $x^2$.": "x^2",
    "thus $p - q$.": "p-q",
    "is 5": "5",
    "\\boxed{a{b}": None,
    "": None,
}
EQUAL = [
    ("\\frac12", "0.5"),
    ("(3,\\frac{\\pi}{2})", "(3,\\pi/2)"),
    ("x+1", "1+x"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("10\\%", "0.1"),
    ("1,000", "1000"),
]
UNEQUAL = [("x", "y"), ("(1,2)", "(2,1)"), ("\\frac12", "0.51"), ("x+1", "x-1"), ("1/3", "0.333"), ("", "1"), ("\\sqrt{2}", "2")]
PHRASES = {
    "Answer: the Nile.": "the Nile",
    "\n\nfoo bar\nbaz": "foo bar",
    "The answer is **Paris**.": "Paris",
    "": None,
    "...": None,
    "w " * 30: None,
}
FENCE = "```"
PROGRAMS = {
    f"Sure:\n{FENCE}python\ndef f():\n    return 1\n{FENCE}\nand\n{FENCE}\nf()\n{FENCE}": "def f():\n    return 1",
    f"cut {FENCE}python\nx = 1": "x = 1",
    "def f(): return 1": "def f(): return 1",
    "    return x": "    return x",
    "hello there, world": None,
    "": None,
}


@pytest.mark.parametrize("text", NUMBERS, ids=range(len(NUMBERS)))
def test_number(text):
    assert Number().read(text) == NUMBERS[text]


@pytest.mark.parametrize("text", CHOICES, ids=range(len(CHOICES)))
def test_choice(text):
    assert Choice(options=("the cat", "a dog", "fish", "cow")).read(text) == CHOICES[text]


@pytest.mark.parametrize("text", FORMULAS, ids=range(len(FORMULAS)))
def test_latex(text):
    assert Latex().read(text) == FORMULAS[text]


@pytest.mark.parametrize("text", PHRASES, ids=range(len(PHRASES)))
def test_phrase(text):
    assert ShortText().read(text) == PHRASES[text]


def test_one_of_reads_the_only_option_that_is_named():
    reader = OneOf(options=("the heart", "a heart attack", "lungs"))
    assert reader.read("It is the lungs.") == "lungs"
    assert reader.read("Heart") == "the heart"
    assert reader.read("Because it pumps.\nAnswer: the heart.") == "the heart"
    assert reader.read("heart or lungs") is None
    assert reader.read("the liver") is None


@pytest.mark.parametrize("text", PROGRAMS, ids=range(len(PROGRAMS)))
def test_code(text):
    assert Code().read(text) == PROGRAMS[text]


def test_code_ignores_comments_and_layout_but_not_meaning():
    assert Code().same("x = 1  # one", "x=1\n")
    assert not Code().same("x = 1", "x = 2")


@pytest.mark.parametrize("reader", READERS, ids=lambda r: type(r).__name__)
@given(text=TEXTS)
def test_read_never_raises_and_every_answer_is_the_same_as_itself(reader, text):
    answer = reader.read(text)
    assert answer is None or reader.same(answer, answer)


@pytest.mark.parametrize("reader", EQUIVALENCES, ids=lambda r: type(r).__name__)
@given(a=TEXTS, b=TEXTS, c=TEXTS)
@settings(max_examples=60)
def test_same_is_an_equivalence(reader, a, b, c):
    assert reader.same(a, a)
    assert reader.same(a, b) == reader.same(b, a)
    assert reader.same(a, c) or not (reader.same(a, b) and reader.same(b, c))


@given(st.fractions(max_denominator=10**6))
def test_a_number_reads_its_own_canonical_form_back(value):
    written = Number().read(f"answer is {value}")
    assert written is not None
    assert value_of(written) == value
    assert Number().read(written) == written


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_every_decimal_is_read_exactly(value):
    found = Number().read(f"It is ${value:,}." if value >= 0 else f"It is {value:,}.")
    assert found is not None
    assert value_of(found) == Fraction(value)


@pytest.mark.parametrize("pair", EQUAL, ids=lambda p: f"{p[0]}={p[1]}")
def test_equal_formulas(pair):
    assert Latex().same(*pair)
    assert Latex().same(*reversed(pair))


@pytest.mark.parametrize("pair", UNEQUAL, ids=lambda p: f"{p[0]}!={p[1]}")
def test_unequal_formulas(pair):
    assert not Latex().same(*pair)
    assert not Latex().same(*reversed(pair))


def test_a_hard_pair_costs_its_time_limit_in_any_thread_and_the_next_pair_is_answered():
    found, start = [], time.monotonic()
    thread = threading.Thread(target=lambda: found.append(Latex(seconds=0.5).same("9^{9^{9^{9}}}", "1 + 9^{9^{9^{8}}}")))
    thread.start()
    thread.join()
    assert found == [False]
    assert time.monotonic() - start < 60  # most of it may be the start of the worker
    assert Latex(seconds=20).same("a+b+c", "c+b+a")
