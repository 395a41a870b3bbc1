"""Attention by lists of pages (lists.cpp), seen from Python: each unit's rows meet its pages, and nothing else is read.

Shapes: U units, R rows of all units, P pages of all units.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.native.attention import MAX_ROWS, Kernel, PoolStruct

pointer, i32 = ctypes.c_void_p, ctypes.c_int32


class ListsStruct(ctypes.Structure):
    _fields_ = [("num_units", i32), ("num_threads", i32)] + [(name, pointer) for name in ("units", "rows", "limits", "pages", "places")] + [
        ("log_weight", ctypes.c_float)
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lists:
    """int32 arrays. Unit u: rows row_ends[u - 1]..row_ends[u], each token * H + head, meet pages page_ends[u - 1]..page_ends[u]."""

    rows: np.ndarray  # [R]
    limits: np.ndarray  # [R] a row sees keys at places below this
    row_ends: np.ndarray  # [U]
    pages: np.ndarray  # [P]
    places: np.ndarray  # [P] of each page's first key, ascending in a unit
    page_ends: np.ndarray  # [U]
    log_weight: float = 0.0


class Prepared:
    """Lists of which only the pages are others from call to call."""

    def __init__(self, lists: Lists) -> None:
        self.units, *arrays = (np.ascontiguousarray(x, np.int32) for x in (cut_units(lists), lists.rows, lists.limits, lists.places))
        self.rows, self.limits, self.places = arrays
        self.log_weight = lists.log_weight

    def run(
        self, kernel: Kernel, pages: np.ndarray, q_THE: Tensor, read: tuple[Tensor, Tensor], *, softcap: float = 0.0, pool: PoolStruct | None = None
    ) -> None:
        """As run_lists; pages int32 [P], contiguous."""
        out, lse = read
        at = (x.ctypes.data for x in (self.units, self.rows, self.limits, pages, self.places))
        struct = ListsStruct(len(self.units), torch.get_num_threads(), *at, self.log_weight)
        run = kernel.lib.lists_run
        run.argtypes = [pointer, pointer, ctypes.c_float, pointer, ctypes.c_int64, ctypes.c_int, pointer, pointer]
        run(
            ctypes.byref(struct), ctypes.byref(pool or kernel.pool), softcap, q_THE.data_ptr(), q_THE.stride(0), q_THE.shape[1], out.data_ptr(),
            lse.data_ptr(),
        )  # fmt: skip


def run_lists(
    kernel: Kernel, lists: Lists, q_THE: Tensor, read: tuple[Tensor, Tensor], *, softcap: float = 0.0, pool: PoolStruct | None = None
) -> None:
    """Joins what rows read of their lists with `read`: out float32 [T, H, E], lse [T, H]. pool: where the pages lie if not the kernel's own."""
    Prepared(lists).run(kernel, np.ascontiguousarray(lists.pages, np.int32), q_THE, read, softcap=softcap, pool=pool)


def write_rows(kernel: Kernel, slots: np.ndarray, positions: np.ndarray, kv: tuple[Tensor, Tensor]) -> None:
    """Rows `kv` [T, K, E] each bfloat16, each token's heads side by side, into slots int64 [T, K], at positions int32 [T]."""
    k_TKE, v_TKE = kv
    write = kernel.lib.lists_write
    write.argtypes = [pointer, ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int64, pointer, ctypes.c_int64]
    write(
        ctypes.byref(kernel.pool), *slots.shape, slots.ctypes.data, positions.ctypes.data, k_TKE.data_ptr(), k_TKE.stride(0), v_TKE.data_ptr(),
        v_TKE.stride(0),
    )  # fmt: skip


def cut_units(lists: Lists) -> np.ndarray:
    """int32 [n, 4] first row, last row, first page, last page: units of at most MAX_ROWS rows, nearly equal ones where one is cut."""
    starts, page_starts = (np.concatenate([[0], ends[:-1]]) for ends in (lists.row_ends, lists.page_ends))
    nums = -(-(lists.row_ends - starts) // MAX_ROWS)
    of = np.repeat(np.arange(len(nums)), nums)
    part = np.arange(len(of)) - np.repeat(np.cumsum(nums) - nums, nums)
    size = (lists.row_ends - starts)[of]
    first, last = (starts[of] + size * i // nums[of] for i in (part, part + 1))
    return np.stack([first, last, page_starts[of], lists.page_ends[of]], 1)


def pool_of(keys: Tensor, values: Tensor) -> PoolStruct:
    """Loose pages [n, PAGE, E] of bfloat16, which must stay where they are while they are read."""
    return PoolStruct(keys.data_ptr(), values.data_ptr(), None, None, None, 0, keys.shape[-1])
