"""Lists of pages and of single keys, met by the compiled kernel and by PyTorch: what is read, and how many keys were met."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from native.test_columns import G, K, filled
from ponder.core.attention_plan import Piece
from ponder.engine.attend import attention_reference, merge
from ponder.engine.pages import INT8, PLAIN, Pool, Sequence
from ponder.native.attention import open_kernel
from ponder.native.build import library
from ponder.native.lists import Lists, Reading, run_lists

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
NUM = 150  # keys
N = 3  # tokens, the last of them at the last key


def drawn(are_pages: bool, seed: int) -> Piece:
    """Each token and key head meets keys of its own, one list nearly all of them."""
    draw, places = np.random.default_rng(seed), np.arange(NUM - N, NUM).repeat(K)
    most = [place // 16 + 1 if are_pages else place + 1 for place in places]
    keys = [np.sort(draw.choice(num, num - 1 if i == 2 else draw.integers(1, num), replace=False)) for i, num in enumerate(most)]
    return Piece(
        heads=np.tile(np.arange(K, dtype=np.int32), N), rows=np.arange(N * K * G, dtype=np.int32),
        row_ends=np.arange(G, N * K * G + 1, G, dtype=np.int32), keys=np.concatenate(keys).astype(np.int32),
        key_ends=np.cumsum([len(some) for some in keys]).astype(np.int32), are_pages=are_pages,
    )  # fmt: skip


def read_slowly(pool: Pool, sequence: Sequence, piece: Piece, q_NHE: torch.Tensor, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """List by list, key by key."""
    out, lse, num_met = torch.zeros(N * K * G, pool.width), torch.full((N * K * G,), -torch.inf), 0
    for i, keys in enumerate(np.split(piece.keys, piece.key_ends[:-1])):
        place = NUM - N + i // K
        places = (keys[:, None] * 16 + np.arange(16)).ravel() if piece.are_pages else keys
        places = places[places <= place]
        slots = torch.from_numpy(sequence.table[0, i % K][places // 16].astype(np.int64) * 16 + places % 16)
        rows = slice(i * G, (i + 1) * G)
        mask = torch.zeros(G, len(places))
        out[rows], lse[rows] = attention_reference(q_NHE.flatten(0, 1)[rows].float(), pool.rows(0, slots), pool.rows(1, slots), mask, softcap=softcap)
        num_met += G * len(places)
    return out, lse, num_met


def read_fast(pool: Pool, sequence: Sequence, pieces: list[Piece], q_NHE: torch.Tensor, softcap: float | None):
    kernel = open_kernel(pool.keys, pool.values, pool.positions, pool.scales)
    assert kernel is not None
    reading = Reading(q_THE=q_NHE, out=torch.full((N, K * G, pool.width), 7.0), lse=torch.zeros(N, K * G), softcap=softcap or 0.0)
    into, num_met = torch.zeros(N, K * G * pool.width, dtype=torch.bfloat16), 0
    for i, piece in enumerate(pieces):
        lists = Lists(
            heads=piece.heads, rows=piece.rows, row_ends=piece.row_ends, keys=piece.keys, key_ends=piece.key_ends, are_pages=piece.are_pages,
            table=sequence.table[0], start=NUM - N,
        )  # fmt: skip
        num_met += run_lists(kernel, lists, reading, is_first=i == 0, into=into if i == len(pieces) - 1 else None)
    assert torch.equal(into, reading.out.flatten(1).bfloat16())
    return reading.out.flatten(0, 1), reading.lse.flatten(), num_met


@pytest.mark.parametrize(("width", "softcap", "kv"), [(64, None, PLAIN), (16, None, INT8), (48, 20.0, PLAIN), (80, None, INT8)])
@pytest.mark.parametrize("are_pages", [True, False])
def test_lists_are_read_as_by_pytorch(width: int, softcap: float | None, kv, are_pages: bool):
    torch.manual_seed(width)
    pool, sequence = filled(NUM, width, kv)
    q = torch.randn(N, K * G, width).bfloat16()
    piece = drawn(are_pages, width)
    (out, lse, num), (slow, total, wanted) = (read(pool, sequence, some, q, softcap) for read, some in ((read_fast, [piece]), (read_slowly, piece)))
    assert num == wanted
    assert (out - slow).abs().max() < 0.03
    assert (lse - total).abs().max() < 0.03
    moved = replace(piece, keys=np.maximum(piece.keys - 1, 0))  # a mutant that must be found: each key one off
    assert (read_fast(pool, sequence, [moved], q, softcap)[0] - slow).abs().max() > 0.1


def test_single_keys_read_what_pages_of_them_read():
    """All places one by one, against the pages that they lie in: the same blocks in the same order, bit for bit."""
    torch.manual_seed(1)
    pool, sequence = filled(NUM, 64, PLAIN)
    q, last = torch.randn(N, K * G, 64).bfloat16(), (N - 1) * K
    whole = drawn(True, 0)
    pages, places = np.arange(-(-NUM // 16), dtype=np.int32), np.arange(NUM, dtype=np.int32)
    found = []
    for are_pages, keys in ((True, pages), (False, places)):
        piece = Piece(
            heads=np.arange(K, dtype=np.int32), rows=whole.rows[last * G :], row_ends=np.arange(G, K * G + 1, G, dtype=np.int32),
            keys=np.tile(keys, K), key_ends=np.arange(len(keys), K * len(keys) + 1, len(keys), dtype=np.int32), are_pages=are_pages,
        )  # fmt: skip
        found.append(read_fast(pool, sequence, [piece], q, None))
    assert torch.equal(found[0][0][last * G :], found[1][0][last * G :])
    assert found[0][2] == found[1][2] == K * G * NUM
    assert (found[0][0][: last * G] == 0).all()  # rows that no list names read nothing


def test_two_readings_are_merged():
    torch.manual_seed(2)
    pool, sequence = filled(NUM, 32, PLAIN)
    q = torch.randn(N, K * G, 32).bfloat16()
    first, second = drawn(True, 3), drawn(False, 4)
    out, lse, num = read_fast(pool, sequence, [first, second], q, None)
    parts = [read_fast(pool, sequence, [piece], q, None) for piece in (first, second)]
    wanted = merge([(part[0], part[1]) for part in parts])
    assert (out - wanted[0]).abs().max() < 1e-5
    assert (lse - wanted[1]).abs().max() < 1e-5
    assert num == sum(part[2] for part in parts)
