"""Resamplers x laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.particles import as_log_weights
from ponder.core.rng import TorchRng, enumerate_paths
from ponder.core.weights import normalize
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.testing.laws_resampler import LAWS, law_counts_are_floor_or_ceil, law_variance_at_most_multinomial

RESAMPLERS = (multinomial, residual, stratified, systematic)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("resample", RESAMPLERS, ids=lambda f: f.__name__)
def test_law(resample, law):
    law(resample)


@pytest.mark.parametrize("resample", (residual, stratified, systematic), ids=lambda f: f.__name__)
def test_variance_is_at_most_multinomials(resample):
    law_variance_at_most_multinomial(resample)


def test_systematic_counts_are_floor_or_ceil():
    law_counts_are_floor_or_ceil(systematic)


@pytest.mark.parametrize("resample", (multinomial, stratified), ids=lambda f: f.__name__)
def test_others_do_not_claim_floor_or_ceil(resample):
    with pytest.raises(AssertionError):
        law_counts_are_floor_or_ceil(resample)


@pytest.mark.parametrize("resample", (residual, systematic), ids=lambda f: f.__name__)
def test_whole_shares_leave_nothing_to_chance(resample):
    log_w = as_log_weights([math.log(0.5), math.log(0.25), math.log(0.25)])
    assert {tuple(sorted(resample(log_w, 4, TorchRng(key)).tolist())) for key in range(20)} == {(0, 0, 1, 2)}


def test_systematic_keeps_equal_weights_as_they_are():
    assert systematic(as_log_weights([0.0] * 5), 5, TorchRng(0)).tolist() == [0, 1, 2, 3, 4]


WEIGHTS = st.lists(st.floats(-5, 5) | st.just(-math.inf), min_size=1, max_size=4).filter(lambda w: max(w) > -math.inf)


@pytest.mark.parametrize("resample", RESAMPLERS, ids=lambda f: f.__name__)
@given(log_w=WEIGHTS, num=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_unbiased_for_any_weights(resample, log_w, num):
    wanted = num * normalize(as_log_weights(log_w))
    counts = torch.zeros(len(log_w), dtype=torch.float64)
    total = 0.0
    for ancestors, p in enumerate_paths(lambda rng: resample(as_log_weights(log_w), num, rng)):
        counts += p * torch.bincount(ancestors, minlength=len(log_w)).double()
        total += p
    assert total == pytest.approx(1.0, abs=1e-12)
    assert float((counts - wanted).abs().max()) <= 1e-12
