"""The compiled attention kernel (attention.cpp), seen from Python.

Absent (no compiler, another CPU): `open_kernel` returns None and the engine reads with PyTorch.

Shapes: T flat tokens, H query heads, K key heads, E head width, L layers, P pages of PAGE slots.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.native.build import library

BLOCK = 64  # keys met together: shared runs are cut at its multiples
MAX_ROWS = 96  # query rows that meet a block together

pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class PoolStruct(ctypes.Structure):
    _fields_ = [(name, pointer) for name in ("keys", "values", "key_scales", "value_scales", "positions")] + [("is_int8", i32), ("width", i32)]


class StepStruct(ctypes.Structure):
    _fields_ = [(name, i32) for name in ("num_tokens", "num_heads", "num_kv_heads", "num_groups", "tail_words", "num_threads", "num_copies")] + [
        (name, pointer) for name in ("sequence", "index", "limit", "tail", "position", "pages", "capacity", "dropped", "groups", "copies")
    ]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The new tokens of a step."""

    num_heads: int
    num_kv_heads: int
    sequences: np.ndarray  # [T] number of the token's sequence
    places: np.ndarray  # [T] its place among the sequence's keys
    limits: np.ndarray  # [T] it sees keys of places below this ...
    positions: np.ndarray  # [T]
    tail: np.ndarray | None  # uint64 [T, words]: ... and, where the bit is set, place limit + bit
    tables: Sequence[np.ndarray]  # int32 [L, K, capacity] pages of each sequence
    dropped: Sequence[np.ndarray] | None  # int32 [L, K] keys each head no longer holds
    groups: Sequence[tuple[int, int, int, int, int, int]]  # first token, last token, sequence, first block, last block or -1, level
    copies: np.ndarray | None = None  # [N, 3] (token, sequence, place): what is written to another sequence too


class Kernel:
    """The kernel over one pool of pages, which must not move."""

    def __init__(self, lib: ctypes.CDLL, pool: PoolStruct, held: tuple[Tensor, ...]) -> None:
        self.lib, self.pool, self.held = lib, pool, held

    def plan(self, tokens: Tokens) -> "Plan":
        return Plan(self, tokens)


class Plan:
    """The attention of one step, for every layer."""

    def __init__(self, kernel: Kernel, tokens: Tokens) -> None:
        self.kernel, self.num_heads = kernel, tokens.num_heads
        ints = [np.ascontiguousarray(x, np.int32) for x in (tokens.sequences, tokens.places, tokens.limits, tokens.positions)]
        pages = np.array([table.ctypes.data for table in tokens.tables], np.uint64)
        capacity = np.array([table.shape[2] for table in tokens.tables], np.int64)
        dropped = None if tokens.dropped is None else np.array([x.ctypes.data for x in tokens.dropped], np.uint64)
        groups = np.array(sorted(tokens.groups, key=lambda g: g[5]), np.int32)
        copies = np.zeros((0, 3), np.int32) if tokens.copies is None else np.ascontiguousarray(tokens.copies, np.int32)
        self.held = (ints, pages, capacity, dropped, groups, copies, tokens)
        step = StepStruct(
            len(ints[0]), tokens.num_heads, tokens.num_kv_heads, len(groups), 0 if tokens.tail is None else tokens.tail.shape[1],
            torch.get_num_threads(), len(copies), ints[0].ctypes.data, ints[1].ctypes.data, ints[2].ctypes.data,
            None if tokens.tail is None else tokens.tail.ctypes.data, ints[3].ctypes.data, pages.ctypes.data, capacity.ctypes.data,
            None if dropped is None else dropped.ctypes.data, groups.ctypes.data, copies.ctypes.data,
        )  # fmt: skip
        self.step = step
        self.handle = kernel.lib.attention_plan(ctypes.byref(step))

    def run(
        self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, *, window: int = 0, softcap: float = 0.0, lse_TH: Tensor | None = None
    ) -> Tensor:
        """[T, H * E] bfloat16: writes k and v to their pages, then reads. Each token's heads must lie side by side.

        window: a token sees positions above its own - window; 0 for none. softcap: scores become cap * tanh(score / cap); 0 for none.
        """
        out = torch.empty(len(q_THE), self.num_heads * self.kernel.pool.width, dtype=torch.bfloat16)
        self.kernel.lib.attention_run(
            self.handle, ctypes.byref(self.kernel.pool), layer, window, softcap, q_THE.data_ptr(), q_THE.stride(0), k_TKE.data_ptr(), k_TKE.stride(0),
            v_TKE.data_ptr(), v_TKE.stride(0), out.data_ptr(), None if lse_TH is None else lse_TH.data_ptr(),
        )  # fmt: skip
        return out

    def __del__(self) -> None:
        self.kernel.lib.attention_free(self.handle)


def open_kernel(keys: Tensor, values: Tensor, positions: Tensor, scales: tuple[Tensor, Tensor] | None) -> Kernel | None:
    """The kernel over keys and values [P, PAGE, E], bfloat16, or int8 with scales [P, PAGE]. None where it cannot run."""
    lib = library()
    if lib is None or keys.dtype not in (torch.bfloat16, torch.int8):
        return None
    lib.attention_is_supported.argtypes = [ctypes.c_int]
    if not lib.attention_is_supported(keys.shape[-1]):
        return None
    lib.attention_plan.argtypes, lib.attention_plan.restype = [pointer], pointer
    lib.attention_free.argtypes, lib.attention_free.restype = [pointer], None
    lib.attention_run.argtypes = [
        pointer, pointer, ctypes.c_int, ctypes.c_int, ctypes.c_float, pointer, i64, pointer, i64, pointer, i64, pointer, pointer
    ]  # fmt: skip
    scale_pointers = (None, None) if scales is None else (scales[0].data_ptr(), scales[1].data_ptr())
    pool = PoolStruct(keys.data_ptr(), values.data_ptr(), *scale_pointers, positions.data_ptr(), int(scales is not None), keys.shape[-1])
    return Kernel(lib, pool, (keys, values, positions, *(scales or ())))
