"""The compiled draw (sample.cpp), seen from Python: one pass per row where PyTorch needs a dozen over all rows."""

import ctypes

import numpy as np
import torch
from torch import Tensor

from ponder.native.build import library

pointer = ctypes.c_void_p


def sample_rows(logits_RV: Tensor, temperatures: list[float], probes: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(tokens int64, log_p, log_q, certainty float64), each [R], or None where the kernel cannot run.

    logits float32 [R, V]; probes in [0, 1). Temperature 0 takes the first of the most likely, with log_q 0.
    """
    lib = library()
    if lib is None or logits_RV.dtype != torch.float32 or not logits_RV.is_contiguous() or logits_RV.device.type != "cpu":
        return None
    lib.sample_rows.argtypes = [pointer, ctypes.c_int64, ctypes.c_int64, *[pointer] * 6, ctypes.c_int]
    num_rows, size = logits_RV.shape
    shaping = np.array(temperatures, np.float32), np.array(probes, np.float64)
    tokens, numbers = np.empty(num_rows, np.int64), np.empty((3, num_rows))
    is_done = lib.sample_rows(
        logits_RV.data_ptr(), num_rows, size, *(x.ctypes.data for x in (*shaping, tokens, *numbers)), torch.get_num_threads()
    )  # fmt: skip
    return (tokens, numbers[0], numbers[1], numbers[2]) if is_done else None
