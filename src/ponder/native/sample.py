"""The compiled draw (sample.cpp), seen from Python: one pass per row where PyTorch needs a dozen over all rows."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.native.build import library

pointer = ctypes.c_void_p
CUT = np.dtype([("top_k", np.int64), ("top_p", np.float64), ("min_p", np.float32), ("unused", np.float32)])


class MoveStruct(ctypes.Structure):
    _fields_ = (
        [("seen", pointer), ("num_seen", ctypes.c_int64)]
        + [(name, ctypes.c_float) for name in ("repetition", "frequency", "presence", "unused")]
        + [("ids", pointer), ("biases", pointer), ("num_biases", ctypes.c_int64), ("allowed", pointer), ("width", ctypes.c_int64)]
    )


@dataclass(frozen=True, kw_only=True)
class Move:
    """How a row's logits move before the draw, in this order: penalties of the tokens seen, biases, tokens that are not allowed."""

    seen: np.ndarray | None = None  # int64, with repetitions
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    ids: np.ndarray | None = None  # int64
    biases: np.ndarray | None = None  # float32, of `ids`
    allowed: np.ndarray | None = None  # bool; no token beyond its end is allowed

    def struct(self, size: int) -> MoveStruct:
        """Points into the arrays. Raises IndexError for an id that is not below `size`."""
        for ids in (self.seen, self.ids):
            if ids is not None and len(ids) and not 0 <= ids.min() <= ids.max() < size:
                raise IndexError(f"token {ids.min()} or {ids.max()} of a vocabulary of {size}")
        return MoveStruct(
            *_span(self.seen), self.repetition, self.frequency, self.presence, 0.0, _span(self.ids)[0], *_span(self.biases), *_span(self.allowed)
        )


def sample_rows(
    logits_RV: Tensor,
    temperatures: Sequence[float],
    probes: Sequence[float],
    *,
    cuts: Sequence[tuple[int, float, float]] | None = None,
    moves: Sequence[Move | None] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(tokens int64, log_p, log_q, certainty float64), each [R], or None where the kernel cannot run.

    logits float32 [R, V]; probes in [0, 1); cuts (top_k, 0 for all; top_p; min_p). Temperature 0 takes the first of the most likely, with log_q 0.
    Raises IndexError for an id that is not of the vocabulary.
    """
    lib = library()
    if lib is None or logits_RV.dtype != torch.float32 or not logits_RV.is_contiguous() or logits_RV.device.type != "cpu":
        return None
    lib.sample_rows.argtypes = [pointer, ctypes.c_int64, ctypes.c_int64, *[pointer] * 8, ctypes.c_int]
    num_rows, size = logits_RV.shape
    shaping = np.array(temperatures, np.float32), np.array(probes, np.float64)
    cut = None if cuts is None else np.array([(*c, 0.0) for c in cuts], CUT)
    structs = [None if move is None else move.struct(size) for move in moves or ()]
    places = np.array([0 if s is None else ctypes.addressof(s) for s in structs], np.uint64)
    tokens, numbers = np.empty(num_rows, np.int64), np.empty((3, num_rows))
    is_done = lib.sample_rows(
        logits_RV.data_ptr(), num_rows, size, *(x.ctypes.data for x in shaping), None if cut is None else cut.ctypes.data,
        places.ctypes.data if structs else None, tokens.ctypes.data, *(x.ctypes.data for x in numbers), torch.get_num_threads(),
    )  # fmt: skip
    return (tokens, numbers[0], numbers[1], numbers[2]) if is_done else None


def _span(values: np.ndarray | None) -> tuple[int | None, int]:
    return (None, 0) if values is None else (values.ctypes.data, len(values))
