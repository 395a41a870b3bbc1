"""Figures about samples are what their definitions say: unbiased by enumeration, and with a confounder taken out."""

import math
from itertools import product

import numpy as np
import pytest

from ponder.core.errors import BadField
from ponder.study.samples import (
    Pool,
    budgets_up_to,
    coverage_table,
    covered,
    decomposed,
    fitted,
    length_effect,
    model_error,
    never_met,
    pair_spread,
    path_error,
    right_paths,
    slope,
)


def pool(*right, lengths=None, question="q"):
    return Pool(question=question, right=tuple(map(bool, right)), lengths=lengths or (1,) * len(right))


def law_decomposition(model, spread):
    """Over every outcome of n samples: E model = (1 - p)^2, E spread / k + E model = E (p^_k - 1)^2, exactly."""
    for p, n in ((0.3, 2), (0.8, 4), (0.5, 5)):
        weights = {draw: math.prod(p if r else 1 - p for r in draw) for draw in product((0, 1), repeat=n)}
        found = sum(w * model(pool(*draw)) for draw, w in weights.items())
        assert abs(found - (1 - p) ** 2) < 1e-12, f"model error {found}, is {(1 - p) ** 2}"
        whole = sum(w * (sum(draw) / n - 1) ** 2 for draw, w in weights.items())
        parts = found + sum(w * spread(pool(*draw)) for draw, w in weights.items()) / n
        assert abs(whole - parts) < 1e-12, f"parts add up to {parts}, the whole is {whole}"


def test_decomposition_is_unbiased_and_adds_up():
    law_decomposition(model_error, pair_spread)
    plug_in = lambda some: (1 - sum(some.right) / some.num) ** 2  # the mistake: plug in the share itself
    plug_in_spread = lambda some: sum(some.right) / some.num * (1 - sum(some.right) / some.num)
    for model, spread in ((plug_in, pair_spread), (model_error, plug_in_spread)):
        with pytest.raises(AssertionError):
            law_decomposition(model, spread)


def test_estimation_error_falls_as_one_over_the_samples():
    found = decomposed([pool(1, 0, 1, 0, question=str(i)) for i in range(10)], (1, 4, 16))
    assert found.estimation[16].value == pytest.approx(found.estimation[1].value / 16)
    assert found.model.value == pytest.approx(1 / 6)  # of six pairs, one has both wrong
    with pytest.raises(BadField, match="two samples"):
        decomposed([pool(1)], (1,))


def test_coverage_is_the_mean_of_pass_at_k_with_an_interval():
    draw = np.random.default_rng(1)
    chances = draw.beta(0.5, 2.0, 120)
    pools = [pool(*(draw.random(16) < p), question=str(i)) for i, p in enumerate(chances)]
    found = covered(pools)
    assert found.ks == tuple(range(1, 17)) and budgets_up_to(1000)[-1] == 1000 and len(budgets_up_to(1000)) <= 40
    wanted = [float(np.mean(1 - (1 - chances) ** k)) for k in found.ks]
    assert all(e.low - 0.03 <= w <= e.high + 0.03 for e, w in zip(found.at, wanted))
    assert all(b.value >= a.value for a, b in zip(found.at, found.at[1:]))
    assert found.law is not None and found.law.rmse < 0.02
    beyond = float(np.mean(1 - (1 - chances) ** 64))
    assert found.ahead[64].low - 0.05 < beyond < found.ahead[64].high + 0.05
    with pytest.raises(BadField, match="draw more"):
        coverage_table(pools, [17])


def test_the_law_is_found_in_log_space():
    ks = budgets_up_to(200)
    law = fitted(ks, [math.exp(-2.0 * k**-0.4) for k in ks])
    assert (law.a, law.b) == (pytest.approx(-2.0), pytest.approx(-0.4)) and law.rmse < 1e-9
    assert fitted([1, 2], [0.0, 1.0]) is None
    assert covered([pool(0, 0, question=str(i)) for i in range(5)]).law is None


def simpson(num=60, seed=0):
    """Hard questions get long answers; within a question length means nothing."""
    draw = np.random.default_rng(seed)
    pools = []
    for i in range(num):
        hard = i / num
        right = draw.random(16) < 0.9 - 0.8 * hard
        lengths = tuple(int(x) for x in 2 ** (4 + 3 * hard + draw.normal(0, 0.5, 16)))
        pools.append(pool(*right, lengths=lengths, question=str(i)))
    return pools


def test_length_is_controlled_for_difficulty():
    found = length_effect(simpson())
    assert found.raw.high < -0.1, "over all samples long answers are wrong"
    assert found.within.low < 0 < found.within.high and abs(found.within.value) < 0.05, "within questions they are not"
    assert found.quintiles[0] > found.quintiles[4] + 0.3 and abs(found.controlled[0] - found.controlled[4]) < 0.1
    assert abs(slope(simpson(), is_within=False)) > 0.1, "a slope that forgets the questions sees what is not there"


def test_an_effect_within_questions_is_seen():
    pools = [pool(*(i % 2 for i in range(8)), lengths=tuple(8 + 8 * (i % 2) for i in range(8)), question=str(j)) for j in range(12)]
    found = length_effect(pools)
    assert found.within.value == pytest.approx(1.0) and found.num_mixed == 12
    assert length_effect([pool(1, 1, lengths=(3, 4)), pool(0, 0, lengths=(5, 6))]).num_mixed == 0


def law_path_error(error):
    """Over every sequence of k draws from four paths, two of them right: the mean square of what was not drawn, exactly."""
    chances = (0.4, 0.15, 0.35, 0.1)
    for k, never in product((1, 2, 4), (0.0, 0.2)):
        wanted = 0.0
        for draw in product(range(4), repeat=k):
            missed = never + sum(chances[path] for path in (0, 1) if path not in draw)
            wanted += math.prod(chances[path] for path in draw) * missed**2
        assert abs(error(chances[:2], k, never=never) - wanted) < 1e-12, f"{error(chances[:2], k, never=never)} at {k}, is {wanted}"


def test_path_probabilities_err_by_what_was_not_drawn():
    law_path_error(path_error)
    independent = lambda q, k, never: never**2 + sum(x * x * (1 - x) ** k for x in q)  # the mistake: paths as if each alone were missed
    with pytest.raises(AssertionError):
        law_path_error(independent)
    assert path_error([0.5], 20) / path_error([0.5], 10) == pytest.approx(0.5**10), "exponential"
    assert path_error([1e-9], 20) == pytest.approx(1e-18), "hopeless where a path is as good as impossible"
    twice = Pool(question="q", right=(True, True, False), lengths=(1, 1, 1), paths=((0, -1.0), (0, -1.0), (1, -2.0)))
    assert right_paths(twice) == [math.exp(-1.0)] and never_met(twice) == pytest.approx(2 / 3 - math.exp(-1.0))
    unlikely = Pool(question="q", right=(True, False), lengths=(1, 1), paths=((0, -60.0), (1, -60.0)))
    assert decomposed([unlikely], (1, 16)).path_estimation[16] == pytest.approx(0.25), "impossible paths: nothing of 1/2 is ever found"
