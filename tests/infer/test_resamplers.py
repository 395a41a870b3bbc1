"""Resamplers x laws."""

import math

import pytest

from ponder.core.particles import as_log_weights
from ponder.core.rng import TorchRng
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
