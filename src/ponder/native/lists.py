"""Attention by lists of keys (lists.cpp), seen from Python: each list's rows meet its keys, and nothing else is read.

Shapes: U lists, R rows of all lists, P pages or keys of all lists, K key heads.
"""

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.native.attention import Kernel

pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class ListsStruct(ctypes.Structure):
    _fields_ = [(name, i32) for name in ("num_lists", "num_threads", "are_pages", "start", "num_heads")] + [
        *((name, pointer) for name in ("heads", "rows", "row_ends", "keys", "key_ends", "table")),
        ("capacity", i64), ("log_weight", ctypes.c_float),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lists:
    """int32 arrays. List u, of a key head: rows row_ends[u - 1]..row_ends[u], each token * H + head, meet keys key_ends[u - 1]..key_ends[u].

    Keys are numbers of pages of the sequence's table, of which a row sees what is not behind its own place, or places of single keys, all of
    which it sees.
    """

    heads: np.ndarray  # [U]
    rows: np.ndarray  # [R]
    row_ends: np.ndarray  # [U]
    keys: np.ndarray  # [P] ascending in a list
    key_ends: np.ndarray  # [U]
    are_pages: bool
    table: np.ndarray  # [K, capacity] pages of the sequence
    start: int  # place of token 0
    log_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Query rows of a step's tokens in one layer, and what they have read so far: out float32 [T, H, E] and lse [T, H], overwritten by each
    layer's first lists."""

    q_THE: Tensor  # bfloat16; each token's heads lie side by side
    out: Tensor
    lse: Tensor
    softcap: float = 0.0


def run_lists(kernel: Kernel, lists: Lists, reading: Reading, *, is_first: bool = True, into: Tensor | None = None) -> int:
    """Joins what rows read of their lists with what they read before, unless these are the first; into: bfloat16 [T, H * E], where the sums then
    go. Returns how many pairs of a row and a key met."""
    q_THE = reading.q_THE
    arrays = [_int32(x) for x in (lists.heads, lists.rows, lists.row_ends, lists.keys, lists.key_ends, lists.table)]
    struct = ListsStruct(
        len(lists.heads), torch.get_num_threads(), lists.are_pages, lists.start, q_THE.shape[1], *map(address, arrays), lists.table.shape[1],
        lists.log_weight,
    )  # fmt: skip
    return _functions(kernel.lib)[0](  # type: ignore[no-any-return]
        ctypes.byref(struct), ctypes.byref(kernel.pool), reading.softcap, q_THE.data_ptr(), q_THE.stride(0), len(q_THE), is_first,
        reading.out.data_ptr(), reading.lse.data_ptr(), None if into is None else into.data_ptr(),
    )  # fmt: skip


def write_rows(kernel: Kernel, slots: np.ndarray, positions: np.ndarray, kv: tuple[Tensor, Tensor]) -> None:
    """Rows `kv` [T, K, E] each bfloat16, each token's heads side by side, into slots int64 [T, K], at positions int32 [T]."""
    k_TKE, v_TKE = kv
    _functions(kernel.lib)[1](
        ctypes.byref(kernel.pool), *slots.shape, address(slots), address(positions), k_TKE.data_ptr(), k_TKE.stride(0), v_TKE.data_ptr(),
        v_TKE.stride(0),
    )  # fmt: skip


def address(array: np.ndarray) -> int:
    """Where a writable array begins: what `array.ctypes.data` says, in half of the time."""
    return torch.from_numpy(array).data_ptr()


@functools.cache
def _functions(lib: ctypes.CDLL) -> tuple[ctypes._CFuncPtr, ctypes._CFuncPtr]:
    """What runs lists, and what writes rows."""
    run, write = lib.lists_run, lib.lists_write
    run.argtypes, run.restype = [pointer, pointer, ctypes.c_float, pointer, i64, i32, i32, pointer, pointer, pointer], i64
    write.argtypes, write.restype = [pointer, i32, i32, pointer, pointer, pointer, i64, pointer, i64], None
    return run, write


def _int32(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.int32 and x.flags.c_contiguous else np.ascontiguousarray(x, np.int32)
