"""The store against a dictionary, under thousands of random operations."""

import random

import pytest
import torch

from ponder.engine.kv import KVStore, common_len

SHAPE = (2, 1, 4)  # layers, key heads, head width
SLOT = 2 * 2 * 1 * 4 * 4  # bytes of a slot


def kv_of(key: tuple[int, ...]) -> torch.Tensor:
    """Keys and values that are a function of the whole prefix, as a model's are."""
    rows = [float(hash(key[: i + 1]) % 65521) for i in range(len(key))]
    return torch.tensor(rows)[None, None, :, None, None].expand(2, 2, len(key), 1, 4)


def nodes_of(store: KVStore):
    stack = [store.root]
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        yield node


def check(store: KVStore) -> None:
    """No slot leaks, none is used twice, children hang where they belong, leaves are idle unless pinned."""
    used = [slot for node in nodes_of(store) for slot in node.slots.tolist()]
    assert sorted(used + store.free) == list(range(store.table.shape[2]))
    for node in nodes_of(store):
        assert len(node.tokens) == len(node.slots)
        assert all(child.parent is node and child.tokens[0] == first for first, child in node.children.items())
        assert (node in store.idle) == node.is_idle
    assert store.nbytes <= store.max_slots * SLOT


@pytest.mark.parametrize(("max_slots", "seed"), [(100_000, 0), (300, 1), (40, 2)])
def test_store_equals_a_dictionary(max_slots: int, seed: int):
    store, rng = KVStore(SHAPE, torch.float32, max_slots * SLOT), random.Random(seed)
    known: dict[tuple[int, ...], float] = {}  # key -> hidden value put last
    pinned: list[tuple[object, tuple[int, ...]]] = []
    keys: list[tuple[int, ...]] = [()]
    for step in range(4000):
        base = rng.choice(keys[-50:])
        key = base[: rng.randint(0, len(base))] + tuple(rng.randint(-3, 3) for _ in range(rng.randint(1, 6)))
        action = rng.random()
        if action < 0.5:
            hidden = torch.tensor([float(step)]) if rng.random() < 0.5 else None
            node = store.put(key, kv_of(key), hidden)
            if node is not None:
                keys.append(key)
                if hidden is not None:
                    known[key] = float(step)
                if rng.random() < 0.1 and len(pinned) < 5:
                    store.pin(node)
                    pinned.append((node, key))
            else:
                assert max_slots < 1000, "there was room"
        elif action < 0.95:
            found = store.find(key)
            assert torch.equal(store.read(found), kv_of(key[: found.num_tokens]))
            if found.is_node_end and found.node.hidden is not None:
                assert found.node.hidden.item() == known[key[: found.num_tokens]]
            if max_slots > 10_000:
                assert found.num_tokens == max(common_len(key, other) for other in keys)
        elif pinned:
            node, key = pinned.pop(rng.randrange(len(pinned)))
            assert store.find(key).num_tokens == len(key), "a pinned path was evicted"
            store.unpin(node)
        if step % 50 == 0:
            check(store)
    check(store)


def test_least_recently_used_goes_first():
    store = KVStore(SHAPE, torch.float32, 6 * SLOT)
    for key in ((1, 1), (2, 2), (3, 3)):
        assert store.put(key, kv_of(key)) is not None
    store.find((1, 1))
    assert store.put((4, 4), kv_of((4, 4))) is not None
    assert [store.find((i, i)).num_tokens for i in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_what_does_not_fit_is_not_stored():
    store = KVStore(SHAPE, torch.float32, 4 * SLOT)
    long = tuple(range(9))
    assert store.put(long, kv_of(long)) is None
    assert store.find(long).num_tokens == 0
    assert KVStore(SHAPE, torch.float32, 0).put((1,), kv_of((1,))) is None


def test_a_fork_copies_nothing():
    store = KVStore(SHAPE, torch.float32, 1000 * SLOT)
    trunk = tuple(range(50))
    for branch in range(10):
        store.put((*trunk, 100 + branch), kv_of((*trunk, 100 + branch)))
    assert store.num_used == 60


def test_common_len():
    assert [common_len(a, b) for a, b in [((), ()), ((1, 2), (1, 2, 3)), ((1, 2, 3), (1, 9, 3)), ((5,), (6,))]] == [0, 2, 1, 0]
