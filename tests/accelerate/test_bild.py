"""Big little decoder: takes back at the first surprise, is exact where nothing may surprise, and biased elsewhere."""

import math

import pytest
import torch

from ponder.accelerate.accept.bild import BigLittle
from ponder.core.draft import Target, Tree, chain
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.testing.laws_draft import law_greedy_is_greedy, law_keeps_the_distribution

ROWS = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]], dtype=torch.float64).log()


def accepted(rollback, tree):
    return BigLittle(rollback=rollback).accept(tree, Target((0, 2, 0, 1), lambda row: ROWS[row]), TorchRng(0))


@pytest.mark.parametrize(
    ("rollback", "path", "token"),
    [(0.0, (), 0), (-math.log(0.2) + 1e-6, (0,), 2), (-math.log(0.05) + 1e-6, (0, 1), 0), (math.inf, (0, 1, 2), 1), (-math.log(0.2) - 1e-6, (), 0)],
)
def test_the_first_surprise_is_taken_back(rollback, path, token):
    """Drafted 1, 0, 1 with probabilities 0.2, 0.05, 0: what follows the last that stays is the target's draw there."""
    made = accepted(rollback, chain((1, 0, 1)))
    assert made.path == path and made.token == token


def test_a_later_child_may_stay():
    made = accepted(1.0, Tree((2, 0, 1), (-1, -1, 1)))
    assert made.path == (1,) and made.token == 0


def test_nothing_stays_that_is_not_certain():
    """At rollback 0 answers keep the target's distribution, by enumeration; at any other they do not."""
    law_keeps_the_distribution(BigLittle(rollback=0))
    with pytest.raises(AssertionError, match="plain decoding gives"):
        law_keeps_the_distribution(BigLittle(rollback=2))


def test_greedy_requests_stay_greedy():
    law_greedy_is_greedy(BigLittle())


def test_bad_rollbacks_are_refused():
    with pytest.raises(BadField, match="rollback=-1"):
        BigLittle(rollback=-1)
