"""Pages and sequences against a naive store, under ten thousand random forks, extensions, drops and releases."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ponder.engine.pages import INT8, PAGE, PLAIN, Pool, Sequence

L, K, E = 2, 3, 8
GROUP = L * K


def make_pool(num_groups: int, kv_format=PLAIN) -> Pool:
    probe = Pool((L, K, E), torch.float32, 1 << 20, kv_format)
    return Pool((L, K, E), torch.float32, num_groups * GROUP * probe.page_nbytes, kv_format)


class Naive:
    """What a sequence should hold: per layer and head a list of (position, number)."""

    def __init__(self, held=None, num_tokens: int = 0) -> None:
        self.held = held or [[[] for _ in range(K)] for _ in range(L)]
        self.num_tokens = num_tokens

    def fork(self) -> "Naive":
        return Naive([[list(h) for h in layer] for layer in self.held], self.num_tokens)


def write(pool: Pool, sequence: Sequence, naive: Naive, num: int, rng: random.Random) -> None:
    start = sequence.num_tokens
    for layer in range(L):
        numbers = [[rng.randrange(1 << 20) for _ in range(K)] for _ in range(num)]
        rows = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1).expand(-1, E)
        positions = torch.arange(start, start + num)[:, None].expand(-1, K).reshape(-1)
        pool.write(sequence.slots(layer, start, start + num).reshape(-1), rows, -rows, positions)
        for head in range(K):
            naive.held[layer][head] += [(start + i, numbers[i][head]) for i in range(num)]
    sequence.num_tokens = naive.num_tokens = start + num


def check(pool: Pool, pairs) -> None:
    for sequence, naive in pairs:
        assert sequence.num_tokens == naive.num_tokens
        for layer in range(L):
            for head in range(K):
                held = naive.held[layer][head]
                assert int(sequence.dropped[layer, head]) == naive.num_tokens - len(held)
                pages = torch.from_numpy(sequence.table[layer, head, : sequence.num_pages[layer, head]].astype(np.int64))
                keys, values = pool.read(pages)
                positions = pool.positions[pages].reshape(-1)
                assert keys[: len(held), 0].tolist() == [float(n) for _, n in held]
                assert values[: len(held), -1].tolist() == [-float(n) for _, n in held]
                assert positions[: len(held)].tolist() == [p for p, _ in held]


def count_refs(pool: Pool, sequences) -> np.ndarray:
    refs = np.zeros(pool.num_pages, np.int32)
    for sequence in sequences:
        held = np.arange(sequence.table.shape[2]) < sequence.num_pages[..., None]
        np.add.at(refs, sequence.table[held], 1)
    return refs


@pytest.mark.parametrize(("num_groups", "seed"), [(400, 0), (12, 1)])
def test_sequences_equal_a_naive_store(num_groups: int, seed: int):
    pool, rng = make_pool(num_groups), random.Random(seed)
    pairs: list[tuple[Sequence, Naive]] = []
    refused = 0
    for step in range(10_000):
        action = rng.random()
        if action < 0.1 or not pairs:
            pairs.append((Sequence(pool), Naive()))
        elif action < 0.25:
            sequence, naive = rng.choice(pairs)
            pairs.append((sequence.fork(), naive.fork()))
        elif action < 0.7:
            sequence, naive = rng.choice(pairs)
            num = rng.choice([1, 1, 1, 5, PAGE, 37])
            used, needed = pool.num_used, sequence.needed(sequence.num_tokens + num)
            if sequence.reserve(sequence.num_tokens + num):
                write(pool, sequence, naive, num, rng)
            else:
                assert needed > pool.num_free
                assert pool.num_used == used
                refused += 1
        elif action < 0.8:
            sequence, naive = rng.choice(pairs)
            layer, head = rng.randrange(L), rng.randrange(K)
            num = len(naive.held[layer][head])
            places = np.array(sorted(rng.sample(range(num), rng.randint(0, num))), np.int64)
            if sequence.keep(layer, head, places):
                naive.held[layer][head] = [naive.held[layer][head][i] for i in places]
        else:
            pairs.pop(rng.randrange(len(pairs)))[0].release()
        if rng.random() < 0.02:
            pool.trim(at_least=1)
        if len(pairs) > 14:
            pairs.pop(0)[0].release()
        if step % 97 == 0:
            check(pool, pairs)
            assert (count_refs(pool, [s for s, _ in pairs]) == pool.refs).all(), "a reference too many or too few"
            assert sorted(pool.free[: pool.num_free].tolist()) == np.flatnonzero(pool.refs == 0).tolist()
    assert (refused > 0) == (num_groups == 12)
    for sequence, _ in pairs:
        sequence.release()
    assert pool.num_used == 0, "pages leak"
    assert pool.trim(at_least=1) > 0
    assert pool.nbytes == 0


def test_a_fork_takes_no_page_and_the_first_write_behind_it_one_per_head():
    pool = make_pool(100)
    sequence = Sequence(pool)
    assert sequence.reserve(20)
    sequence.num_tokens = 20
    used = pool.num_used
    forks = [sequence.fork() for _ in range(30)]
    assert pool.num_used == used == 2 * GROUP
    assert forks[0].reserve(21)
    assert pool.num_used == used + GROUP
    assert forks[0].table[0, 0, 0] == sequence.table[0, 0, 0]
    assert forks[0].table[0, 0, 1] != sequence.table[0, 0, 1]


def test_trimmed_memory_is_given_back_and_comes_back_as_zeros():
    pool = Pool((2, 2, 64), torch.bfloat16, 1 << 28)
    sequence = Sequence(pool)
    assert sequence.reserve(40_000)
    pool.keys[: pool.num_used] = 1.0
    pool.values[: pool.num_used] = 1.0
    before = resident()
    held = pool.nbytes
    sequence.release()
    assert pool.nbytes == held, "kept for the next until trimmed"
    assert pool.trim(at_least=1) == held
    assert resident() < before - 30e6
    assert pool.nbytes == 0
    again = Sequence(pool)
    assert again.reserve(100)
    assert not pool.read(torch.from_numpy(again.table[0, 0, :4].astype(np.int64)))[0].any()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_int8_errs_by_half_a_step():
    pool = make_pool(50, INT8)
    sequence = Sequence(pool)
    assert sequence.reserve(40)
    k, v = torch.randn(40 * K, E), torch.randn(40 * K, E) * 5
    k[7] = 0.0
    pool.write(sequence.slots(1, 0, 40).reshape(-1), k, v, torch.zeros(40 * K))
    keys, values = pool.read(torch.from_numpy(sequence.table[1, :, :3].astype(np.int64)))
    for found, wanted in ((keys, k), (values, v)):
        rows = wanted.view(40, K, E).transpose(0, 1)
        assert ((found[:, :40] - rows).abs() <= rows.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001).all()
    assert pool.page_nbytes == PAGE * (2 * E + 4 + 8)


def test_a_wrong_release_is_caught():
    """The law must bite: a fork that forgets to share leaves a reference too few."""
    pool = make_pool(50)
    sequence = Sequence(pool)
    assert sequence.reserve(20)
    sequence.num_tokens = 20
    wrong = Sequence(pool)
    wrong.table, wrong.num_pages = sequence.table.copy(), sequence.num_pages.copy()
    assert (count_refs(pool, [sequence, wrong]) != pool.refs).any()
