"""Weights as small integers, a bounded number of rows at a time, so that no format ever holds a matrix in float32.

Groups: 32 weights of a row share a scale and a zero, w = (code - 8) scale + zero with code in 0..15. Blocks of Q4_0 (w = d (q - 8)), of Q4_1
(w = d q + m) and of Q4_K (w = d s q - dmin m, s and m six bits) are groups already: only their scale and zero are rounded, to bfloat16.
Rows: all weights of a row share a scale, w = code scale with code in -127..127.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.formats import RawTensor

GROUP = 32  # weights that share a scale
MAX_VALUES = 1 << 18  # weights decoded to float32 at a time
STORED = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144)}  # kinds whose codes are taken as they are: weights and bytes of a block


@dataclass(frozen=True)
class Groups:
    """Rows in four bits. codes uint8 [rows, in] of 0..15; scales and zeros bfloat16 [rows, in / 32]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def dense(self) -> Tensor:
        """The weights, float32 [rows, in]."""
        grouped = self.codes.view(*self.scales.shape, GROUP).float()
        return grouped.sub_(8).mul_(self.scales.float()[..., None]).add_(self.zeros.float()[..., None]).view(self.codes.shape)


def spans(part: RawTensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of rows that together are all of `part`, each of at most MAX_VALUES weights or a single row."""
    step = max(1, MAX_VALUES // part.shape[1])
    for start in range(0, part.shape[0], step):
        yield start, min(start + step, part.shape[0])


def dense_rows(parts: tuple[RawTensor, ...]) -> Iterator[Tensor]:
    """float32 [rows, in] of all parts in order, some rows at a time."""
    for part in parts:
        for start, stop in spans(part):
            yield part.dense(start, stop)


def groups(parts: tuple[RawTensor, ...]) -> Iterator[Groups]:
    """Groups of all parts in order, some rows at a time. in_features must be a multiple of 32."""
    for part in parts:
        for start, stop in spans(part):
            yield groups_of(part, start, stop)


def groups_of(part: RawTensor, start: int, stop: int) -> Groups:
    """Groups of rows start:stop."""
    return stored_groups(part.blocks(start, stop), part.kind) if part.kind in STORED else range_groups(part.dense(start, stop))


def stored_groups(raw: np.ndarray, kind: str) -> Groups:
    """Groups of blocks of a kind in STORED, uint8 [rows, bytes per row]."""
    values, nbytes = STORED[kind]
    blocks = np.ascontiguousarray(raw).reshape(-1, nbytes)
    header = nbytes - values // 2
    halves = torch.from_numpy(blocks[:, : 4 if kind != "Q4_0" else 2].copy().view(np.float16).astype(np.float32))
    nibbles = torch.from_numpy(np.ascontiguousarray(blocks[:, header:])).view(len(blocks), -1, min(32, values // 2))
    codes = torch.stack([nibbles & 15, nibbles >> 4], 2)  # a run of bytes holds the low nibbles of one run of weights, then the high of the next
    if kind == "Q4_K":
        steps, minima = six_bit_pairs(blocks[:, 4:16])
        scales, shifts = halves[:, :1] * steps, halves[:, 1:] * minima
        zeros = 8 * scales - shifts
    else:
        scales = halves[:, :1]
        zeros = halves[:, 1:] + 8 * scales if kind == "Q4_1" else torch.zeros_like(scales)
    rows = len(raw)
    return Groups(codes.reshape(rows, -1), scales.reshape(rows, -1).bfloat16(), zeros.reshape(rows, -1).bfloat16())


def six_bit_pairs(packed: np.ndarray) -> tuple[Tensor, Tensor]:
    """float32 [n, 8] scales and minima of uint8 [n, 12]: four with their low six bits first, four split over the bits that are left."""
    first, second, rest = (torch.from_numpy(np.ascontiguousarray(packed[:, i : i + 4])) for i in (0, 4, 8))
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 6) << 4)], 1)
    minima = torch.cat([second & 63, (rest >> 4) | ((second >> 6) << 4)], 1)
    return scales.float(), minima.float()


def range_groups(weight: Tensor) -> Groups:
    """Groups that span the range of each group of float32 [rows, in]."""
    grouped = weight.view(len(weight), -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scales = ((high - low) / 15).clamp(min=1e-12).bfloat16()
    zeros = (low + 8 * scales.float()).bfloat16()
    steps = 1 / scales.float()
    codes = torch.addcmul(8.5 - zeros.float() * steps, grouped, steps).clamp_(0, 15)  # rounded by the cast, which cuts off
    return Groups(codes.to(torch.uint8).view_as(weight), scales[..., 0], zeros[..., 0])


def row_codes(parts: tuple[RawTensor, ...], scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, in] and scales [rows] of all parts, stacked."""
    num_rows = sum(part.shape[0] for part in parts)
    codes, scales = torch.empty(num_rows, parts[0].shape[1], dtype=torch.int8), torch.empty(num_rows, dtype=scale_dtype)
    at = 0
    for rows in dense_rows(parts):
        codes[at : at + len(rows)], scales[at : at + len(rows)] = quantised_rows(rows, scale_dtype)
        at += len(rows)
    return codes, scales


def quantised_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 [rows, in] -> int8 codes [rows, in], scales [rows]. A row of zeros gets scale 1."""
    largest = weight.abs().amax(1)
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest)).to(scale_dtype)
    codes = (weight * (1 / scales.float())[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales
