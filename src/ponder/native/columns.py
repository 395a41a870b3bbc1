"""Column sums of attention weights by the compiled kernel (columns.cpp).

Shapes: R rows of one sequence, H query heads, K key heads, E head width.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.native.attention import Kernel, i32, i64, pointer


class RowsStruct(ctypes.Structure):
    _fields_ = [
        ("pages", pointer), ("capacity", i64), ("num_held", pointer),
        *((name, i32) for name in ("num_rows", "num_heads", "num_kv_heads", "position", "window", "num_threads")),
        ("softcap", ctypes.c_float), ("q", pointer), ("q_stride", i64), ("lse", pointer), ("factors", pointer), ("sums", pointer),
        ("sums_stride", i64),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that come last in one layer of a sequence. A head holds num_held [K] keys, all of which the last row sees, the one before all
    but one, and so on."""

    q_RHE: Tensor  # bfloat16; each row's heads lie side by side
    lse_RH: Tensor  # float32: log of the sum of a row's exponentiated scores
    position: int  # of the first row
    table: np.ndarray  # int32 [K, capacity]: pages
    num_held: np.ndarray  # int32 [K]
    window: int = 0
    softcap: float = 0.0
    factors: Tensor | None = None  # float32 [R]


def add_columns(kernel: Kernel, rows: Rows, sums_KN: Tensor) -> None:
    """Adds to int64 [K, N] what each key receives from the rows, summed over them and the group, in parts of 2^-24."""
    table, num_held, factors = np.ascontiguousarray(rows.table), np.ascontiguousarray(rows.num_held, np.int32), rows.factors
    lse = rows.lse_RH.contiguous()
    struct = RowsStruct(
        table.ctypes.data, table.shape[1], num_held.ctypes.data, len(rows.q_RHE), rows.q_RHE.shape[1], len(num_held), rows.position, rows.window,
        torch.get_num_threads(), rows.softcap, rows.q_RHE.data_ptr(), rows.q_RHE.stride(0), lse.data_ptr(),
        None if factors is None else factors.data_ptr(), sums_KN.data_ptr(), sums_KN.stride(0),
    )  # fmt: skip
    kernel.lib.attention_columns(ctypes.byref(kernel.pool), ctypes.byref(struct))
