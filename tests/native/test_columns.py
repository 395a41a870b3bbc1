"""The compiled column sums equal the slow ones, for every kind of page, row and key; and any cut of the rows gives the same bits."""

import itertools

import numpy as np
import pytest
import torch

from ponder.core.evidence import QUANTUM, columns_of, scores_of
from ponder.engine.pages import INT8, PLAIN, Pool, Sequence
from ponder.native.attention import open_kernel
from ponder.native.build import library
from ponder.native.columns import Rows, add_columns

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
K, G = 2, 3


def filled(num: int, width: int, kv_format) -> tuple[Pool, Sequence]:
    pool = Pool((1, K, width), torch.bfloat16, 1 << 22, kv_format)
    sequence = Sequence(pool)
    assert sequence.reserve(num)
    k, v = (torch.randn(num * K, width).bfloat16() for _ in range(2))
    pool.write(sequence.slots(0, 0, num).reshape(-1), k, v, torch.arange(num).repeat_interleave(K))
    sequence.num_tokens = num
    return pool, sequence


def slow_and_fast(pool: Pool, sequence: Sequence, num_rows: int, *, window: int | None, softcap: float | None, factors=None, shift: int = 0):
    """Column sums of the last rows; shift: how far the fast ones' mask is off."""
    num, width = sequence.num_tokens, pool.width
    held = num - sequence.dropped[0]
    q = torch.randn(num_rows, K * G, width).bfloat16()
    numbers = torch.from_numpy(sequence.table[0].astype(np.int64))
    keys, positions = pool.read(numbers)[0], pool.positions[numbers].flatten(1).long()
    longest = int(held.max())
    keys, positions = keys[:, :longest], positions[:, :longest].masked_fill(torch.arange(longest) >= torch.from_numpy(held)[:, None], -1)
    at = torch.arange(num - num_rows, num)
    lse = scores_of(q, keys, positions, at, window=window, softcap=softcap).logsumexp(-1).flatten(0, 1).T.contiguous()
    slow = columns_of(q, keys, positions, num - num_rows, window=window, softcap=softcap, factors=factors)
    kernel = open_kernel(pool.keys, pool.values, pool.positions, pool.scales)
    assert kernel is not None

    def fast(first: int, last: int) -> torch.Tensor:
        sums = torch.zeros(K, longest, dtype=torch.int64)
        rows = Rows(
            q_RHE=q[first:last], lse_RH=lse[first:last], position=num - num_rows + first, table=sequence.table[0],
            num_held=held - (num_rows - last) + shift, window=window or 0, softcap=softcap or 0.0,
            factors=None if factors is None else factors[first:last],
        )  # fmt: skip
        add_columns(kernel, rows, sums)
        return sums

    return slow, fast


@pytest.mark.parametrize("width", [16, 48, 64, 128])
@pytest.mark.parametrize(("window", "softcap", "is_ragged", "kv_format"), [
    (None, None, False, PLAIN), (90, None, False, PLAIN), (None, 20.0, False, INT8), (150, None, True, PLAIN), (None, None, True, INT8),
])  # fmt: skip
def test_equal_to_the_slow_ones(width: int, window: int | None, softcap: float | None, is_ragged: bool, kv_format):
    torch.manual_seed(width)
    pool, sequence = filled(333, width, kv_format)
    if is_ragged:
        sequence.keep(0, 0, np.arange(0, 333, 2)[:-20])
        sequence.keep(0, 1, np.arange(100))
    num_rows = 10 if is_ragged else 333
    if is_ragged:  # the rows' own keys are all held
        assert sequence.reserve(343)
        sequence.num_tokens = 343
        at = sequence.slots(0, 333, 343).reshape(-1)
        pool.write(at, torch.randn(20, width).bfloat16(), torch.randn(20, width).bfloat16(), torch.arange(333, 343).repeat_interleave(K))
    factors = torch.rand(num_rows) if width == 64 else None
    slow, fast = slow_and_fast(pool, sequence, num_rows, window=window, softcap=softcap, factors=factors)
    whole = fast(0, num_rows)
    assert (whole.double() * QUANTUM - slow).abs().max() < 2e-3 * slow.max()
    cuts = [0, 1, num_rows // 2, num_rows - 1, num_rows]
    assert torch.equal(torch.stack([fast(a, b) for a, b in itertools.pairwise(cuts)]).sum(0), whole)


def test_a_mask_that_is_off_by_one_is_caught():
    pool, sequence = filled(200, 64, PLAIN)
    slow, fast = slow_and_fast(pool, sequence, 200, window=None, softcap=None, shift=-1)
    assert (fast(0, 200).double() * QUANTUM - slow).abs().max() > 0.05 * slow.max()
