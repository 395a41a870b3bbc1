"""Rows of a packed matrix, looked up: a head that is the embedding too is held once.

Shapes     codes [blocks of 16 outputs, groups, bytes] as `matrix.interleave` lays them out -> float32 [tokens, columns]
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.formats import Linear
from ponder.native.codes import GROUP
from ponder.native.matrix import OUTPUTS, Matrix, NativeLinear


@dataclass(frozen=True)
class PackedRows:
    """An Embedding over a matrix that another holds."""

    matrix: Matrix
    nbytes: int = 0

    def rows(self, tokens: Tensor) -> Tensor:
        """w = scale (code - zero) [ + minimum ], in float32 and in this order, as the file's blocks are decoded."""
        matrix, ids = self.matrix, tokens.numpy()
        if ids.size and not 0 <= ids.min() <= ids.max() < matrix.struct.rows:
            raise IndexError(f"row {ids.min()} or {ids.max()} of a matrix that has {matrix.struct.rows}")
        block, lane = ids // OUTPUTS, ids % OUTPUTS
        codes = codes_at(matrix, block, lane).astype(np.float32)
        scales = matrix.scales[block, :, :, lane].astype(np.float32) * matrix.row_scales[ids, None, None]
        if not matrix.struct.has_minima:
            codes -= 1 << matrix.struct.bits - 1
        with np.errstate(all="ignore"):  # a scale that is no number is the file's business
            codes *= scales[:, :, :1]
            if matrix.struct.has_minima:
                codes += scales[:, :, 1:]
        return torch.from_numpy(codes.reshape(len(ids), matrix.struct.columns))


def codes_at(matrix: Matrix, block: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """uint8 [n, groups, GROUP]: codes of the outputs `lane` of blocks."""
    packed, bits = matrix.codes, matrix.struct.bits
    num, groups, halves = len(block), packed.shape[1], 8 if bits == 8 else 4
    registers = packed[:, :, : halves * 64].reshape(len(packed), groups, halves, OUTPUTS, 4)
    found = registers[block, :, :, lane].reshape(num, groups, halves * 4)
    if bits == 8:
        return found
    found = np.concatenate([found & 15, found >> 4], -1)
    if bits == 4:
        return found
    fifths = packed[:, :, 256:].reshape(len(packed), groups, 8, OUTPUTS // 2)[block, :, :, lane // 2]  # [n, groups, 8], two outputs a byte
    nibbles = (fifths >> (lane % 2 * 4).astype(np.uint8)[:, None, None])[..., None]
    return found | (((nibbles >> np.arange(4, dtype=np.uint8)) & 1) << 4).reshape(num, groups, GROUP)


def packed_rows(linear: Linear) -> PackedRows | None:
    """The rows of a NativeLinear of one part that is the file's, bit for bit; None for any other."""
    if not isinstance(linear, NativeLinear) or len(linear.parts) != 1 or not linear.parts[0].is_exact:
        return None
    return PackedRows(linear.parts[0])
