"""The fit finds what made the data, and its own conditions of optimality hold; clipping a plain fit does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.plan.fit import fit, relative_errors

numbers = st.floats(0.01, 10)


def check_optimal(solve, features, seconds) -> None:
    """Karush-Kuhn-Tucker: no gradient where a coefficient is positive, none that points below zero where it is not."""
    rows = np.array(features) / np.array(seconds)[:, None]
    found = np.array(solve(features, seconds))
    slope = rows.T @ (rows @ found - 1) / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    assert (found >= 0).all() and (slope > -1e-4).all() and (np.abs(slope[found > 0]) < 1e-4).all()


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=8), st.tuples(numbers, numbers))
def test_optimal(features, truth):
    check_optimal(fit, features, [1.0] * len(features))
    seconds = [a * truth[0] + b * truth[1] for a, b in features]
    assert relative_errors([sum(c * x for c, x in zip(fit(features, seconds), row)) for row in features], seconds) == pytest.approx(
        [0] * len(features), abs=1e-3
    )


def clipped(features, seconds):
    rows = np.array(features) / np.array(seconds)[:, None]
    return np.maximum(np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0], 0)


def test_clipping_is_not_enough():
    features, seconds = [[1.0, 2.0], [2.0, 3.0], [1.0, 1.0]], [3.0, 4.0, 0.5]
    check_optimal(fit, features, seconds)
    with pytest.raises(AssertionError):
        check_optimal(clipped, features, seconds)


def test_costs_of_very_different_size():
    features = [[1.0, 1e6], [1.0, 2e8], [1.0, 5e7]]
    seconds = [2e-5 * a + 3e-12 * b for a, b in features]
    assert fit(features, seconds) == pytest.approx((2e-5, 3e-12), rel=1e-3)
