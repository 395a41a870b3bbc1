"""The prefix tree against a dictionary, under thousands of random operations."""

import random

import numpy as np
import pytest
import torch

from ponder.engine.kv import KVStore, Node, common_len
from ponder.engine.pages import PAGE, Pool, Sequence

SHAPE = (2, 1, 4)  # layers, key heads, head width


def make_store(num_groups: int) -> KVStore:
    nbytes = Pool(SHAPE, torch.float32, 1 << 16).page_nbytes
    return KVStore(Pool(SHAPE, torch.float32, num_groups * 2 * nbytes))


def numbers_of(key: tuple[int, ...], start: int) -> torch.Tensor:
    """Keys that are a function of the whole prefix, as a model's are."""
    return torch.tensor([float(hash(key[: i + 1]) % 65521) for i in range(start, len(key))])


def compute(store: KVStore, key: tuple[int, ...]) -> Sequence | None:
    """A sequence that holds `key`: what is stored is shared, the rest is written. None when pages run out."""
    found = store.find(key)
    sequence = Sequence(store.pool, store.pages(found), found.num_tokens)
    while not sequence.reserve(len(key)):
        if not store.evict():
            sequence.release()
            return None
    rows = numbers_of(key, found.num_tokens)[:, None].expand(-1, 4)
    for layer in range(2):
        slots = sequence.slots(layer, found.num_tokens, len(key)).reshape(-1)
        store.pool.write(slots, rows, -rows, torch.arange(found.num_tokens, len(key)))
    sequence.num_tokens = len(key)
    return sequence


def nodes_of(store: KVStore):
    stack = [store.root]
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        yield node


def check(store: KVStore, sequences=()) -> None:
    """Every reference is somebody's, children hang where they belong, leaves are idle unless pinned."""
    refs = np.zeros(store.pool.num_pages, np.int32)
    for node in nodes_of(store):
        np.add.at(refs, node.pages.ravel(), 1)
        assert node.pages.shape[2] == (-(-node.stop // PAGE) - node.start // PAGE if node.tokens else 0)
        assert all(child.parent is node and child.tokens[0] == first and child.start == node.stop for first, child in node.children.items())
        assert (node in store.idle) == node.is_idle
    for sequence in sequences:
        np.add.at(refs, sequence.table[:, :, : sequence.num_pages[0, 0]].ravel(), 1)
    assert (refs == store.pool.refs).all()


@pytest.mark.parametrize(("num_groups", "seed"), [(5000, 0), (60, 1), (12, 2)])
def test_store_equals_a_dictionary(num_groups: int, seed: int):
    store, rng = make_store(num_groups), random.Random(seed)
    known: dict[tuple[int, ...], float] = {}  # key -> hidden value put last
    pinned: list[tuple[Node, tuple[int, ...]]] = []
    running: list[Sequence] = []
    keys: list[tuple[int, ...]] = [()]
    for step in range(3000):
        base = rng.choice(keys[-50:])
        key = base[: rng.randint(0, len(base))] + tuple(rng.randint(-3, 3) for _ in range(rng.randint(1, 25)))
        key = key[:80]
        action = rng.random()
        if action < 0.5:
            sequence = compute(store, key)
            if sequence is None:
                assert num_groups < 100, "there was room"
                continue
            hidden = torch.tensor([float(step)]) if rng.random() < 0.5 else None
            node = store.put(key, sequence, hidden)
            keys.append(key)
            if hidden is not None:
                known[key] = float(step)
            if rng.random() < 0.1 and len(pinned) < 3:
                store.pin(node)
                pinned.append((node, key))
            if rng.random() < 0.2 and len(running) < 3:
                running.append(sequence)
            else:
                sequence.release()
        elif action < 0.9:
            found = store.find(key)
            keys_read, values_read = store.pool.read(torch.from_numpy(store.pages(found).astype(np.int64)))
            wanted = numbers_of(key[: found.num_tokens], 0)
            assert (keys_read[:, 0, : found.num_tokens, 0] == wanted).all()
            assert (values_read[:, 0, : found.num_tokens, 1] == -wanted).all()
            if found.is_node_end and found.node.hidden is not None:
                assert found.node.hidden.item() == known[key[: found.num_tokens]]
        elif action < 0.94 and pinned:
            node, key = pinned.pop(rng.randrange(len(pinned)))
            assert store.find(key).num_tokens == len(key), "pinned prefixes stay"
            store.unpin(node)
        elif running:
            running.pop(rng.randrange(len(running))).release()
        if step % 50 == 0:
            check(store, running)
    for node, _ in pinned:
        store.unpin(node)
    for sequence in running:
        sequence.release()
    while store.evict():
        pass
    assert store.pool.num_used == 0, "pages leak"


def test_a_fork_of_a_stored_prefix_copies_nothing():
    store = make_store(100)
    key = tuple(range(50))
    sequence = compute(store, key)
    assert sequence is not None
    store.put(key, sequence)
    sequence.release()
    used = store.pool.num_used
    forks = [Sequence(store.pool, store.pages(store.find(key)), 50) for _ in range(30)]
    assert store.pool.num_used == used
    assert forks[3].table[1, 0, 2] == forks[7].table[1, 0, 2]


def test_the_leaf_used_longest_ago_goes_first():
    store = make_store(100)
    for key in ((1, 2), (1, 3), (4, 5)):
        sequence = compute(store, key)
        assert sequence is not None
        store.put(key, sequence)
        sequence.release()
    store.find((1, 2))
    assert store.evict()
    assert store.find((1, 3)).num_tokens == 1, "gone"
    assert store.find((4, 5)).num_tokens == 2
    assert store.find((1, 2)).num_tokens == 2


def test_common_len():
    rng = random.Random(0)
    for _ in range(300):
        a = [rng.randint(0, 1) for _ in range(rng.randint(0, 9))]
        b = [rng.randint(0, 1) for _ in range(rng.randint(0, 9))]
        wanted = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        assert common_len(tuple(a), tuple(b)) == wanted
