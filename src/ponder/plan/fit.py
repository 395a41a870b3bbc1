"""Least squares in relative error with coefficients that are not negative: costs are never less than nothing."""

import itertools
from collections.abc import Sequence

import numpy as np


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Coefficients c >= 0 that minimise the sum over i of (features[i] . c / seconds[i] - 1)^2.

    features [n, k], seconds [n] positive. The problem of Lawson and Hanson 1974, chapter 23; for a handful of coefficients every set of
    positive ones is tried, and the best whose plain least squares are positive is the answer.
    """
    rows = np.asarray(features, float) / np.asarray(seconds, float)[:, None]
    num = rows.shape[1]
    best, least = np.zeros(num), float(len(rows))
    for size in range(1, num + 1):
        for chosen in itertools.combinations(range(num), size):
            scale = np.maximum(np.abs(rows[:, chosen]).max(0), 1e-300)
            found = np.linalg.lstsq(rows[:, chosen] / scale, np.ones(len(rows)), rcond=None)[0] / scale
            error = float(((rows[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(num), error
                best[list(chosen)] = found
    return tuple(best.tolist())


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """predicted / measured - 1."""
    return [p / m - 1 for p, m in zip(predicted, measured, strict=True)]
