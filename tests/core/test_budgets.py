"""Budgets as text, limits, and the arithmetic of costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.budget import Budget, Cost, parse_budget
from ponder.core.errors import BadField, PonderError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2000 tokens, 20 s", Budget(tokens=2000, seconds=20.0)),
        ("5k tokens", Budget(tokens=5000)),
        ("1.5 T flops", Budget(flops=1.5e12)),
        ("1.5tflops", Budget(flops=1.5e12)),
        ("$0.02", Budget(usd=0.02)),
        ("0.02 usd, 3 calls", Budget(usd=0.02, calls=3)),
        ("1e3 tok", Budget(tokens=1000)),
        (".5 sec", Budget(seconds=0.5)),
        ("2.5k tokens ,", Budget(tokens=2500)),
        ("1 TOKEN", Budget(tokens=1)),
        ("", Budget()),
    ],
)
def test_reads(text, wanted):
    assert parse_budget(text) == wanted


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("2000", "'2000'"),
        ("-5 tokens", "'-5 tokens'"),
        ("20 apples", "'20 apples'"),
        ("5 tokens, 6 tok", "twice"),
        ("0 tokens", "tokens=0"),
        ("0.4 tokens", "tokens=0"),
        ("nan s", "'nan s'"),
        ("tokens", "'tokens'"),
        ("1e999 s", "seconds=inf"),
        ("1e999 tokens", "tokens"),
    ],
)
def test_refuses_and_names_the_bad_part(text, named):
    with pytest.raises(BadField) as caught:
        parse_budget(text)
    assert named in str(caught.value) and isinstance(caught.value, PonderError)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        assert isinstance(parse_budget(text), Budget)
    except BadField as error:
        assert str(error)


@given(
    st.builds(
        Budget,
        tokens=st.none() | st.integers(1, 10**6),
        seconds=st.none() | st.floats(1e-3, 1e5),
        calls=st.none() | st.integers(1, 10**5),
    )
)
def test_what_is_written_can_be_read(budget):
    text = str(budget)
    again = parse_budget("" if text == "no limit" else text)
    assert again.tokens == budget.tokens
    assert (again.seconds is None) == (budget.seconds is None)
    assert again.seconds is None or again.seconds == pytest.approx(budget.seconds, rel=1e-5)


def test_the_first_limit_that_is_reached_is_named():
    budget = Budget(tokens=10, calls=2)
    assert budget.spent_by(Cost(prompt_tokens=9)) is None
    assert budget.spent_by(Cost(prompt_tokens=4, generated_tokens=3, verifier_tokens=3)) == "tokens"
    assert budget.spent_by(Cost(calls=2)) == "calls"
    assert Budget().spent_by(Cost(prompt_tokens=10**12)) is None


def test_reused_tokens_are_free():
    assert Cost(reused_tokens=100, prompt_tokens=1, drafted_tokens=7).tokens == 1


COSTS = st.builds(
    Cost, prompt_tokens=st.integers(0, 99), generated_tokens=st.integers(0, 99), verifier_tokens=st.integers(0, 99), calls=st.integers(0, 9)
)


@given(COSTS, COSTS, COSTS)
def test_costs_add_like_numbers(a, b, c):
    assert (a + b) + c == a + (b + c) and a + b == b + a and a + Cost() == a
    assert (a + b).tokens == a.tokens + b.tokens
    assert a.as_verifier().tokens == a.tokens == a.as_verifier().verifier_tokens
