"""Measures agree with their definitions, ties included, and wrong implementations do not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.errors import BadField
from ponder.verify.measure import auroc, brier, expected_calibration_error, false_positive_rate, true_positive_rate

LEVELS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
JUDGED = st.lists(st.tuples(LEVELS, st.booleans()), min_size=2, max_size=30).filter(lambda rows: len({right for _, right in rows}) == 2)


def pairs_auroc(values, labels):
    """The definition: every pair of a right and a wrong answer."""
    right = [v for v, x in zip(values, labels) if x]
    wrong = [v for v, x in zip(values, labels) if not x]
    return sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))


def auroc_without_ties(values, labels):
    """Wrong: a tie counts as lost."""
    right = [v for v, x in zip(values, labels) if x]
    wrong = [v for v, x in zip(values, labels) if not x]
    return sum(r > w for r in right for w in wrong) / (len(right) * len(wrong))


@given(JUDGED)
def test_auroc_is_its_definition(rows):
    values, labels = zip(*rows)
    assert auroc(values, labels) == pytest.approx(pairs_auroc(values, labels), abs=1e-12)


@given(JUDGED)
def test_auroc_depends_on_order_only_and_flips_with_the_sign(rows):
    values, labels = zip(*rows)
    assert auroc([math.exp(3 * v) for v in values], labels) == pytest.approx(auroc(values, labels))
    assert auroc([-v for v in values], labels) == pytest.approx(1 - auroc(values, labels))


def test_ties_are_half_and_forgetting_them_is_seen():
    values, labels = [0.5, 0.5, 0.5], [True, False, False]
    assert auroc(values, labels) == 0.5
    assert auroc_without_ties(values, labels) != 0.5


@given(JUDGED, LEVELS)
def test_rates_count_answers_at_the_threshold_as_accepted(rows, threshold):
    values, labels = zip(*rows)
    wrong = [v for v, x in zip(values, labels) if not x]
    assert false_positive_rate(values, labels, threshold=threshold) == sum(v >= threshold for v in wrong) / len(wrong)
    assert false_positive_rate(values, labels, threshold=-1) == true_positive_rate(values, labels, threshold=-1) == 1
    assert false_positive_rate(values, labels, threshold=2) == true_positive_rate(values, labels, threshold=2) == 0


@given(JUDGED)
def test_brier_and_calibration_lie_between_their_bounds(rows):
    values, labels = zip(*rows)
    one_bin = expected_calibration_error(values, labels, num_bins=1)
    assert one_bin == pytest.approx(abs(sum(values) - sum(labels)) / len(rows))
    assert one_bin <= expected_calibration_error(values, labels) + 1e-12  # splitting bins never hides error
    assert expected_calibration_error(values, labels, num_bins=1000) ** 2 <= brier(values, labels) + 1e-9
    assert 0 <= brier(values, labels) <= 1


def test_known_values():
    assert brier([1.0, 0.0], [True, False]) == 0
    assert brier([0.5, 0.5], [True, False]) == 0.25
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == 0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1  # the last bin is closed
    assert expected_calibration_error([0.2, 0.8], [True, False]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: auroc([1.0], [True]),
        lambda: auroc([1.0, 2.0], [True]),
        lambda: auroc([], []),
        lambda: auroc([float("nan"), 1.0], [True, False]),
        lambda: brier([1.5], [True]),
        lambda: expected_calibration_error([-0.1], [True]),
        lambda: expected_calibration_error([0.1], [True], num_bins=0),
        lambda: false_positive_rate([0.1], [True], threshold=0.5),
        lambda: true_positive_rate([0.1], [False], threshold=0.5),
    ],
    ids=range(9),
)
def test_undefined_is_an_error(call):
    with pytest.raises(BadField):
        call()
