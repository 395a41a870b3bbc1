"""The hidden Markov oracle agrees with itself, and enumeration with both."""

import math

import pytest
import torch

from ponder.core.errors import DeadParticles
from ponder.core.particles import Batch, Particles, as_log_weights
from ponder.core.rng import TorchRng
from ponder.testing.exact import difference, expected_measure, measure_of, normalised, require, returned
from ponder.testing.hmm import DEADLY, SMALL, Step


@pytest.mark.parametrize("hmm", (SMALL, DEADLY), ids=("small", "deadly"))
def test_forward_recursion_is_the_sum_over_paths(hmm):
    assert hmm.evidence() == pytest.approx(math.fsum(hmm.posterior().values()), abs=1e-15)
    assert math.fsum(normalised(hmm.posterior()).values()) == pytest.approx(1.0)


def test_one_step_of_the_kernel_is_a_row_of_the_table():
    state, log_g = returned(Step(SMALL)(Batch(((0,),) * 3000), TorchRng(0)))
    assert sum(path[1] for path in state) / 3000 == pytest.approx(SMALL.transition[0][1], abs=0.04) and not log_g.any()


def test_measure_of_particles():
    particles = Particles(Batch(("x", "y", "x")), as_log_weights([0.0, -math.inf, math.log(2)]), log_z=math.log(3))
    assert measure_of(particles, str) == pytest.approx({"x": 3.0, "y": 0.0})


def test_dead_paths_are_measure_zero():
    def program(rng):
        if int(rng.categorical(torch.zeros(1, 4, dtype=torch.float64))[0]) == 0:
            raise DeadParticles("gone")
        return Particles(Batch(("x",)), as_log_weights([0.0]))

    found = expected_measure(program, str)
    assert found.measure == pytest.approx({"x": 0.75}) and (found.num_paths, found.num_dead) == (4, 1)


def test_differences_are_seen_at_points_and_in_total():
    assert difference({"a": 0.5}, {"a": 0.5, "b": 0.25}) == 0.25
    assert difference({"a": 0.5, "b": 0.4}, {"a": 0.4, "b": 0.3}) == pytest.approx(0.2)
    with pytest.raises(AssertionError, match="because"):
        require(False, "because")
