"""Rows looked up in a packed matrix: the file's own, bit for bit, for every kind that is kept exactly; no lookup for the others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from native.stored_tensors import stored
from ponder.models.dequantize import KINDS
from ponder.models.embedding import load_embedding
from ponder.native.build import library
from ponder.native.codes import STORED_BITS, stored_bits
from ponder.native.lookup import PackedRows, packed_rows
from ponder.native.matrix import Matrix, pack_linear

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels here")

EXACT = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
NUM, COLUMNS = 1000, 512  # the last block is not full
TOKENS = torch.tensor([999, 0, 7, 7, 16, 31, *range(500, 540)])


def differing(kind: str, bits: int, change: Callable[[Matrix], Matrix] = lambda m: m) -> int:
    """Values of TOKENS' rows that are not, bit for bit, what the embedding's own blocks give."""
    part = stored(kind, NUM, COLUMNS)
    found = PackedRows(change(pack_linear((part,), (bits,)).parts[0])).rows(TOKENS)
    wanted = load_embedding(part, torch.bfloat16).rows(TOKENS)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    return int((found.view(torch.int32) != wanted.view(torch.int32)).sum())


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_rows_are_the_files(kind: str, bits: int):
    part = stored(kind, NUM, COLUMNS)
    if bits < STORED_BITS[kind]:
        assert packed_rows(pack_linear((part,), (bits,))) is None
        assert differing(kind, bits) > 0
    else:
        assert packed_rows(pack_linear((part,), (bits,))) is not None
        assert differing(kind, bits) == 0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - EXACT))
def test_kinds_that_packing_rounds_are_not_looked_up(kind: str):
    assert packed_rows(pack_linear((stored(kind, NUM, COLUMNS),), (stored_bits(kind),))) is None
    assert differing(kind, stored_bits(kind)) > 0


WRONG: dict[str, tuple[str, int, Callable[[Matrix], Matrix]]] = {
    "fifth bits forgotten": ("Q5_0", 5, lambda m: replace(m, codes=np.concatenate([m.codes[..., :256], 0 * m.codes[..., 256:]], -1))),
    "minima forgotten": ("Q4_1", 4, lambda m: replace(m, scales=m.scales * np.array([1, 0], np.float16)[:, None])),
    "scales of the row before": ("Q8_0", 8, lambda m: replace(m, scales=np.roll(m.scales, 1, -1))),
    "powers of the row forgotten": ("Q8_0", 8, lambda m: replace(m, row_scales=np.ones_like(m.row_scales))),
    "nibbles swapped": ("Q4_0", 4, lambda m: replace(m, codes=(m.codes >> 4) | (m.codes << 4))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_seen(name: str):
    assert differing(*WRONG[name]) > 0


def test_a_row_is_the_callers_own_and_must_be_there():
    found = packed_rows(pack_linear((stored("Q8_0", NUM, COLUMNS),), (8,)))
    assert found is not None
    before = found.rows(TOKENS)
    found.rows(TOKENS).zero_()
    assert torch.equal(found.rows(TOKENS), before)
    assert found.rows(torch.tensor([], dtype=torch.int64)).shape == (0, COLUMNS)
    for token in (-1, NUM):
        with pytest.raises(IndexError, match=f"{token}"):
            found.rows(torch.tensor([3, token]))


def test_stacked_parts_have_no_rows_of_their_own():
    parts = stored("Q8_0", 32, 64), stored("Q8_0", 32, 64)
    assert packed_rows(pack_linear(parts, (8, 8))) is None
