"""pass@k and the law of coverage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.errors import BadField
from ponder.testing.laws_strategy import law_pass_at_k
from ponder.verify.coverage import coverage, fit_power_law, pass_at_k


def test_unbiased():
    law_pass_at_k(pass_at_k)


@given(st.integers(1, 60), st.data())
def test_product_is_the_ratio_of_binomials(num, data):
    num_correct, k = data.draw(st.integers(0, num)), data.draw(st.integers(1, num))
    wanted = 1 - math.comb(num - num_correct, k) / math.comb(num, k)
    assert pass_at_k(num, num_correct, k) == pytest.approx(wanted, abs=1e-12)


def test_stays_stable_where_binomials_overflow():
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4, rel=1e-9)
    assert pass_at_k(100_000, 3, 50_000) == pytest.approx(0.875, abs=1e-4)


@pytest.mark.parametrize(("num", "num_correct", "k", "wanted"), [(5, 0, 3, 0.0), (5, 5, 1, 1.0), (5, 1, 5, 1.0), (10, 3, 1, 0.3)])
def test_ends(num, num_correct, k, wanted):
    assert pass_at_k(num, num_correct, k) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(("num", "num_correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_nonsense_is_refused(num, num_correct, k):
    with pytest.raises(BadField):
        pass_at_k(num, num_correct, k)


def test_coverage_is_the_mean_over_questions():
    assert coverage([(4, 4), (4, 0), (4, 1), (4, 1)], 1) == pytest.approx(1.5 / 4)
    with pytest.raises(BadField):
        coverage([], 1)


@pytest.mark.parametrize(("a", "b"), [(-2.0, -0.4), (-0.3, -0.9), (-4.5, -0.15)])
def test_the_law_is_found_again(a, b):
    ks = [1, 2, 4, 8, 16, 64, 256, 1024]
    law = fit_power_law(ks, [math.exp(a * k**b) for k in ks])
    assert (law.a, law.b) == (pytest.approx(a, abs=1e-6), pytest.approx(b, abs=1e-6)) and law.rmse < 1e-8
    assert law.at(32) == pytest.approx(math.exp(a * 32**b), abs=1e-7)


def test_the_fit_is_a_least_squares_fit():
    ks, seen = [1, 2, 4, 8, 16], [0.2, 0.31, 0.38, 0.55, 1.0]
    law = fit_power_law(ks, seen)
    loss = lambda a, b: sum((math.exp(a * k**b) - c) ** 2 for k, c in zip(ks, seen))
    best = loss(law.a, law.b)
    assert all(best <= loss(law.a + da, law.b + db) for da in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01))


@pytest.mark.parametrize("seen", [[0.0, 0.0], [1.0, 1.0], [0.5, 1.0]])
def test_nothing_to_fit_is_refused(seen):
    with pytest.raises(BadField, match="strictly between"):
        fit_power_law([1, 2], seen)
