"""Stated equations are read and computed exactly; what is no equation gives no opinion."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.asks import Candidate, chat
from ponder.core.errors import BadField
from ponder.verify.arithmetic import Arithmetic
from ponder.verify.equations import equations, plain

ASKED = chat("How many?")


def held(text):
    return [h for line in plain(text).splitlines() for h in equations(line)]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The baker makes 6 * 12 = 72 rolls.\nAfter the morning 72 - 50 = 23 rolls are left.", [True, False]),
        ("6 trays x 12 rolls = 72 rolls", [True]),
        ("So $1,200 + $34.50 = $1,234.50.", [True]),
        ("\\[ 6 \\times 12 = 72 \\text{ rolls} \\]", [True]),
        ("\\( \\frac{400}{38} = 10.53 \\)", [True]),
        ("400 / 38 = 10.575", [False]),
        ("2 + 3 = 5 = 6", [True, False]),
        ("15 * 5 = 25 * 3 = 75", [True, True]),
        ("20% of 50 = 10 and 20% of 50 = 11", [True, False]),
        ("(3 + 4) * 2 = 14", [True]),
        ("100 / 3 \\approx 33", [True]),
        ("100 / 3 \\approx 40", [False]),
        ("2^5 = 32", [True]),
        ("2(3 + 4) = 14", [True]),
        ("-3 + 5 = 2", [True]),
        ("Let x = 5. Then y = x + 3 = 8", []),
        ("In 7 = seven days", []),
        ("1 / 0 = 3", []),
        ("2 ^ 999999999 = 3", []),
        ("a = b, 3 = 3, = =, 5 + = 2", []),
        ("The total is 007 + 1 = 8", [True]),
        ("5 ÷ 2 = 2.5", [True]),
    ],
)
def test_what_is_read_and_whether_it_holds(text, wanted):
    assert held(text) == wanted


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789+-*/^()=.,$\\{}% abx\n×~", max_size=80))
def test_any_text_is_read_without_an_error(text):
    (verdict,) = Arithmetic().judge(ASKED, (Candidate(text, None),), ())
    assert verdict.value is None or 0 < verdict.value <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 999), st.sampled_from("+-*"), st.integers(-3, 3))
def test_an_equation_holds_exactly_when_python_says_so(a, b, sign, off):
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert held(f"He has {a} {sign} {b} = {result + off} apples") == [off == 0]


def test_every_wrong_equation_costs_a_factor_and_none_is_no_opinion():
    texts = ("1 + 1 = 2", "1 + 1 = 3", "1 + 1 = 3 and 2 + 2 = 5", "two")
    verdicts = Arithmetic(doubt=0.25).judge(ASKED, tuple(Candidate(t, None) for t in texts), ())
    assert [v.value for v in verdicts] == [1, 0.25, 0.0625, None]


@pytest.mark.parametrize("doubt", [0, 1, -1, float("nan")])
def test_doubt_out_of_range(doubt):
    with pytest.raises(BadField, match="doubt"):
        Arithmetic(doubt=doubt)
