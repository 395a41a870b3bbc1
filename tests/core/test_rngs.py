"""The interpreters of randomness: real, enumerating, recording and replaying."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.core.particles import as_log_weights
from ponder.core.rng import RecordingRng, ReplayingRng, TorchRng, enumerate_paths, hash_seed
from ponder.infer.resample.systematic import systematic

COIN = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64))


def three_flips(rng):
    return tuple(int(rng.categorical(COIN)[0]) for _ in range(3))


def test_every_path_once_with_its_probability():
    paths = list(enumerate_paths(three_flips))
    assert len(paths) == len({flips for flips, _ in paths}) == 8
    assert all(p == pytest.approx(math.prod((0.25, 0.75)[x] for x in flips), rel=1e-14) for flips, p in paths)


def test_paths_may_differ_in_length():
    def until_heads(rng):
        flips = 0
        while flips < 4 and int(rng.categorical(COIN)[0]) == 0:
            flips += 1
        return flips

    found = dict(enumerate_paths(until_heads))
    assert found == pytest.approx({0: 0.75, 1: 0.75 / 4, 2: 0.75 / 16, 3: 0.75 / 64, 4: 1 / 256})


def test_impossible_branches_are_not_walked():
    log_p = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]], dtype=torch.float64)
    assert dict(enumerate_paths(lambda rng: int(rng.categorical(log_p)[0]))) == {1: 0.5, 3: 0.5}


def test_a_uniform_is_cut_where_it_matters():
    def below(rng):
        return bool(rng.uniform([torch.tensor([0.3])])[0] < 0.3)

    assert dict(enumerate_paths(below)) == pytest.approx({True: 0.3, False: 0.7}, abs=1e-7)
    assert len(list(enumerate_paths(lambda rng: rng.uniform([torch.tensor([0.0, 1.0, 2.0, -1.0])])))) == 1


def test_too_many_paths_is_an_error():
    with pytest.raises(RuntimeError, match="more than 7"):
        list(enumerate_paths(three_flips, max_paths=7))


def test_forks_walk_the_same_path_with_seeds_of_their_own():
    def program(rng):
        one, other = rng.fork(1), rng.fork(2)
        assert one.seed(0) != other.seed(0) != rng.seed(0) and one.fork(3).seed(0) != one.seed(0)
        return int(one.categorical(COIN)[0]), int(other.categorical(COIN)[0])

    assert len(list(enumerate_paths(program))) == 4


def test_seeds_are_the_same_on_every_path():
    assert len({seed for seed, _ in enumerate_paths(lambda rng: three_flips(rng) and rng.seed(4, 2))}) == 1


@given(st.integers(), st.lists(st.integers(), max_size=3))
def test_equal_keys_give_equal_draws_and_seeds(key, path):
    a, b = TorchRng(key), TorchRng(key)
    assert a.uniform([torch.empty(0)] * 3).tolist() == b.uniform([torch.empty(0)] * 3).tolist()
    assert a.seed(*path) == b.seed(*path) and 0 <= a.seed(*path) < 2**63
    assert a.fork(*path).uniform([torch.empty(0)]).tolist() == b.fork(*path).uniform([torch.empty(0)]).tolist()


def test_seeds_and_forks_do_not_move_the_draws():
    a, b = TorchRng(1), TorchRng(1)
    a.seed(3)
    a.fork(4).uniform([torch.empty(0)])
    assert a.categorical(COIN.expand(9, -1)).tolist() == b.categorical(COIN.expand(9, -1)).tolist()


def test_paths_and_keys_are_told_apart():
    assert len({hash_seed(1, (2,)), hash_seed(1, (2, 0)), hash_seed(12), hash_seed((1, 2)), TorchRng(1).fork(2).seed()}) == 5


def test_uniform_draws_are_in_range_and_float64():
    draws = TorchRng(0).uniform([torch.empty(0)] * 1000)
    assert draws.dtype == torch.float64 and float(draws.min()) >= 0 and float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 0.05


def test_categorical_follows_its_weights():
    draws = TorchRng(0).categorical(COIN.expand(4000, -1))
    assert draws.dtype == torch.int64 and abs(float(draws.double().mean()) - 0.75) < 0.035


def test_what_is_recorded_can_be_replayed():
    log_w = as_log_weights([0.0, -1.0, 0.5])

    def program(rng):
        inner = rng.fork(7)
        return systematic(log_w, 4, rng).tolist(), three_flips(inner), rng.seed(1), inner.seed(2), systematic(log_w, 2, inner).tolist()

    recording = RecordingRng(TorchRng(5))
    first = program(recording)
    assert program(ReplayingRng(recording.draws, 5)) == first
    assert program(TorchRng(5)) == first


def test_a_replay_that_asks_for_something_else_stops():
    recording = RecordingRng(TorchRng(5))
    recording.categorical(COIN)
    with pytest.raises(IndexError, match="asks for 2"):
        ReplayingRng(recording.draws, 5).categorical(COIN.expand(2, -1))
    replay = ReplayingRng(recording.draws, 5)
    replay.categorical(COIN)
    with pytest.raises(IndexError, match="None"):
        replay.categorical(COIN)
