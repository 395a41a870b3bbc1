"""What one query's attention gives each key before it, by the compiled kernel (row_weights.cpp).

Shapes: H query heads, K key heads, E head width, N keys.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

from ponder.native.attention import Kernel, i64, pointer


def row_weights(kernel: Kernel, table: np.ndarray, num_keys: int, q_HE: Tensor, *, softcap: float = 0.0) -> Tensor:
    """float32 [K, num_keys]: weights of the first keys of int32 table [K, capacity], summed over the query rows of a key head.

    q_HE: bfloat16, heads side by side.
    """
    pages = np.ascontiguousarray(table, np.int32)
    out = torch.empty(len(pages), num_keys)
    run = kernel.lib.row_weights
    run.argtypes = [pointer, pointer, i64, *(ctypes.c_int,) * 4, ctypes.c_float, pointer, pointer]
    run(
        ctypes.byref(kernel.pool), pages.ctypes.data, pages.shape[1], num_keys, len(q_HE), len(pages), torch.get_num_threads(), softcap,
        q_HE.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out
