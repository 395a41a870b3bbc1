"""Attention over pages by Triton kernels, seen from Python. Absent (no Triton, no card): `is_here` says so and the engine reads with PyTorch.

Shapes: B tokens, one of each sequence; H query heads, K key heads, E head width, L layers, P pages of PAGE slots, R table rows, C pages of a table.
"""

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

try:
    from ponder.native import paged_triton as kernels
except ImportError:  # Triton is no dependency: it comes with PyTorch's CUDA builds
    kernels = None  # type: ignore[assignment]

BLOCK_KEYS = 64
WIDE_ROWS = 64  # query rows of a piece that several tokens share
BLOCK_PARTS = 16  # partial results merged at a time
MIN_ROWS = 16  # of a product of tensor cores


def is_here(device: torch.device) -> bool:
    """Whether the kernels run on tensors of `device`: on a card, or anywhere in Triton's interpreter."""
    return kernels is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


@dataclass(frozen=True, kw_only=True)
class Paged:
    """The pages of a process and the tables of its sequences. keys, values [P, PAGE, E]; scales [P, PAGE] of int8 ones."""

    keys: Tensor
    values: Tensor
    scales: tuple[Tensor, Tensor] | None
    positions: Tensor  # int32 [P, PAGE]
    tables: Tensor  # int32 [R, L, K, C]
    dropped: Tensor  # int32 [R, L, K]

    @property
    def width(self) -> int:
        return self.keys.shape[2]

    @property
    def block(self) -> int:
        """Power of two that holds a head."""
        return max(16, 1 << (self.width - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One token each of B sequences, and the pieces in which they meet their keys (paged_triton)."""

    rows: Tensor  # int64 [B] table row
    places: Tensor  # int64 [B] place among the sequence's keys, and position
    single: Tensor  # int32 [num, 5] pieces of one token
    shared: Tensor | None  # int32 [num, 5] pieces of up to WIDE_ROWS / G tokens
    num_parts: Tensor  # int32 [B] slots that hold a token's partial results
    max_parts: int


def write(paged: Paged, batch: Batch, layer: int, *, k_BKE: Tensor, v_BKE: Tensor) -> None:
    """Keys and values of the batch's tokens into their pages. A token's heads lie side by side."""
    num_layers, num_kv, capacity = paged.tables.shape[1:]
    key_scales, value_scales = paged.scales or (paged.positions, paged.positions)
    kernels.write[(len(batch.rows), num_kv)](
        k_BKE, v_BKE, k_BKE.stride(0), v_BKE.stride(0), paged.keys, paged.values, key_scales, value_scales, paged.positions, paged.tables,
        paged.dropped, batch.rows, batch.places, layer, num_layers, capacity, NUM_KV=num_kv, WIDTH=paged.width, BLOCK_E=paged.block,
        PAGE=paged.keys.shape[1], IS_SCALED=paged.scales is not None,
    )  # fmt: skip


def read(paged: Paged, batch: Batch, layer: int, q_BHE: Tensor, *, window: int, softcap: float) -> tuple[Tensor, Tensor]:
    """(out [B, H * E], lse float32 [B, H]). window: a token sees positions above its own - window; 0 for none. softcap: 0 for none."""
    num, num_heads = q_BHE.shape[:2]
    num_layers, num_kv, capacity = paged.tables.shape[1:]
    group = num_heads // num_kv
    key_scales, value_scales = paged.scales or (paged.positions, paged.positions)
    out_parts = torch.empty(batch.max_parts, num, num_heads, paged.width, dtype=torch.float32, device=q_BHE.device)
    lse_parts = torch.empty(batch.max_parts, num, num_heads, dtype=torch.float32, device=q_BHE.device)
    for pieces, num_rows in ((batch.single, group), (batch.shared, max(WIDE_ROWS, group))):
        if pieces is None:
            continue
        kernels.attend[(len(pieces), num_kv)](
            q_BHE, q_BHE.stride(0), paged.keys, paged.values, key_scales, value_scales, paged.positions, paged.tables, paged.dropped, batch.rows,
            batch.places, pieces, out_parts, lse_parts, layer, num_layers, capacity, num, 1 / math.sqrt(paged.width), float(softcap), window,
            NUM_KV=num_kv, GROUP=group, WIDTH=paged.width, BLOCK_E=paged.block, BLOCK_M=max(MIN_ROWS, 1 << (num_rows - 1).bit_length()),
            BLOCK_N=BLOCK_KEYS, PAGE=paged.keys.shape[1], IS_SCALED=paged.scales is not None, HAS_SOFTCAP=softcap != 0, HAS_WINDOW=window != 0,
        )  # fmt: skip
    out = torch.empty(num, num_heads * paged.width, dtype=q_BHE.dtype, device=q_BHE.device)
    lse = torch.empty(num, num_heads, dtype=torch.float32, device=q_BHE.device)
    kernels.join[(num, num_heads)](
        out_parts, lse_parts, batch.num_parts, out, lse, num, num_heads, WIDTH=paged.width, BLOCK_E=paged.block, BLOCK_P=BLOCK_PARTS
    )
    return out, lse


def tokens_of_a_shared_piece(group: int) -> int:
    """How many tokens of `group` query heads per key head a shared piece may have."""
    return max(1, WIDE_ROWS // group)
