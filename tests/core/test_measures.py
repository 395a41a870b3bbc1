"""Weights and particles: float64, log-space, with every edge said aloud."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.errors import BadField, BadWeight, DeadParticles
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Batch, Particles, as_log_weights, uniform_particles
from ponder.core.weights import check_weights, ess, inverse_cdf, log_mean_exp, normalize

DEAD = -math.inf
WEIGHTS = st.lists(st.floats(-700, 700) | st.just(DEAD), min_size=1, max_size=8).filter(lambda w: max(w) > DEAD)


@given(WEIGHTS)
def test_normalised_weights_sum_to_one(log_w):
    weights = normalize(as_log_weights(log_w))
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14) and float(weights.min()) >= 0
    assert all(w == 0 for w, x in zip(weights.tolist(), log_w) if x == DEAD)


@given(WEIGHTS, st.floats(-500, 500))
def test_a_common_factor_moves_only_the_mean(log_w, shift):
    plain, moved = as_log_weights(log_w), as_log_weights(log_w) + shift
    assert log_mean_exp(moved) == pytest.approx(log_mean_exp(plain) + shift, abs=1e-9)
    assert ess(moved) == pytest.approx(ess(plain), rel=1e-9)


@given(WEIGHTS)
def test_ess_lies_between_one_and_all(log_w):
    assert 1 - 1e-12 <= ess(as_log_weights(log_w)) <= len(log_w) + 1e-9


def test_ess_at_its_ends():
    assert ess(as_log_weights([0.0] * 4)) == pytest.approx(4) and ess(as_log_weights([DEAD, 3.0])) == 1.0


@given(WEIGHTS, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5))
def test_inverse_cdf_finds_the_cell(log_w, probes):
    weights = normalize(as_log_weights(log_w))
    found = inverse_cdf(weights, as_log_weights(probes))
    cumulative = weights.cumsum(0)
    assert found.dtype == torch.int64
    for n, probe in zip(found.tolist(), probes):
        assert weights[n] > 0
        assert probe < cumulative[n] + 1e-15 or n == int(torch.nonzero(weights)[-1, 0])
        assert n == 0 or cumulative[n - 1] <= probe


@pytest.mark.parametrize(
    ("log_w", "error", "named"),
    [
        ([0.0, math.nan], BadWeight, "particle 1"),
        ([math.inf, 0.0], BadWeight, "particle 0"),
        ([DEAD, DEAD, DEAD], DeadParticles, "all 3"),
        ([], DeadParticles, "all 0"),
        ([DEAD, math.nan], BadWeight, "particle 1"),
    ],
)
def test_bad_weights_are_named(log_w, error, named):
    for use in (check_weights, normalize, ess):
        with pytest.raises(error, match=named):
            use(as_log_weights(log_w))


def test_evidence_of_the_dead_is_minus_infinity():
    dead = uniform_particles(Batch("ab")).reweighted(as_log_weights([DEAD, DEAD]))
    assert dead.log_evidence == DEAD and log_mean_exp(dead.log_w) == DEAD


def test_reweighting_multiplies_and_leaves_the_old():
    before = Particles(Batch(("a", "b")), as_log_weights([0.5, DEAD]), log_z=1.0)
    after = before.reweighted(as_log_weights([-1.0, 2.0]))
    assert after.log_w.tolist() == [-0.5, DEAD] and before.log_w.tolist() == [0.5, DEAD] and after.log_z == 1.0
    assert after.log_evidence == pytest.approx(1.0 - 0.5 - math.log(2))


@pytest.mark.parametrize("factor", (math.nan, math.inf))
def test_reweighting_by_nonsense_is_refused(factor):
    with pytest.raises(BadWeight):
        uniform_particles(Batch("ab")).reweighted(as_log_weights([0.0, factor]))


@pytest.mark.parametrize("log_w", (torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)))
def test_particles_need_float64_of_their_own_length(log_w):
    with pytest.raises(BadField, match="float64"):
        Particles(Batch("ab"), log_w)


@given(st.lists(st.sampled_from(Guarantee)))
def test_the_weakest_guarantee_wins(parts):
    assert all(weakest(parts) >= part for part in parts) and weakest(()) == Guarantee.EXACT
    assert str(Guarantee.UNBIASED) == "unbiased"
