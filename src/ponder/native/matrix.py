"""Packed matrices of the compiled kernels (matrix.cpp), seen from Python.

Weights stay as codes of 4, 5 or 8 bits in groups of 32; activations are quantised to 8 bits by group as they come. Row i of a
product depends on row i of the input alone, bit for bit, whatever the number of rows and threads.

Shapes: codes [blocks of 16 outputs, groups, bytes], scales float16 [blocks, groups, 1 or 2, 16].
"""

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import RawTensor
from ponder.native.build import library
from ponder.native.codes import GROUP, Codes, codes_of, has_minima, is_exact, row_scales

OUTPUTS = 16  # of a block
SLAB = 32 << 20  # bytes taken from the system at once, in large pages: with small ones a core reads weights at half the speed

pointer, i32 = ctypes.c_void_p, ctypes.c_int32


class MatrixStruct(ctypes.Structure):
    _fields_ = [(name, pointer) for name in ("codes", "scales", "row_scales")] + [(name, i32) for name in ("rows", "columns", "bits", "has_minima")]


class Memory:
    """Arrays in large pages. A slab lives as long as an array in it."""

    def __init__(self) -> None:
        self.slab, self.used = np.empty(0, np.uint8), 0

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], aligned to 64 bytes, zero."""
        if self.used + nbytes > len(self.slab):
            block = mmap.mmap(-1, max(SLAB, nbytes))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                block.madvise(mmap.MADV_HUGEPAGE)
            self.slab, self.used = np.frombuffer(block, np.uint8), 0
        taken = self.slab[self.used : self.used + nbytes]
        self.used += -(-nbytes // 64) * 64
        return taken


memory = Memory()


@dataclass(frozen=True)
class Matrix:
    """One packed matrix; `struct` points into the arrays. is_exact: its weights are those of the file, bit for bit."""

    codes: np.ndarray
    scales: np.ndarray
    row_scales: np.ndarray
    struct: MatrixStruct
    is_exact: bool

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.row_scales.nbytes


def pack(part: RawTensor, bits: int) -> Matrix:
    """`part` in codes of `bits` (4, 5 or 8) bits; a few rows at a time."""
    num_rows, columns = part.shape
    num_blocks, num_groups, planes = -(-num_rows // OUTPUTS), -(-columns // GROUP), 2 if has_minima(part.kind, bits) else 1
    codes = memory.take(num_blocks * num_groups * GROUP * OUTPUTS * bits // 8).reshape(num_blocks, num_groups, -1)
    scales = memory.take(num_blocks * num_groups * planes * OUTPUTS * 2).view(np.float16).reshape(num_blocks, num_groups, planes, OUTPUTS)
    powers = np.ones(num_blocks * OUTPUTS, np.float32)
    for start, some in codes_of(part, bits):
        found = pad(some)
        at = slice(start // OUTPUTS, (start + len(found.codes)) // OUTPUTS)
        largest = np.abs(found.scales) if found.minima is None else np.maximum(np.abs(found.scales), np.abs(found.minima))
        power = powers[start : start + len(largest)] = row_scales(largest)
        codes[at] = interleave(found.codes, bits)
        for plane, values in enumerate((found.scales, found.minima)[:planes]):
            assert values is not None
            scales[at, :, plane] = (values / power[:, None]).reshape(-1, OUTPUTS, num_groups).swapaxes(1, 2)
    struct = MatrixStruct(codes.ctypes.data, scales.ctypes.data, powers.ctypes.data, num_rows, columns, bits, planes - 1)
    return Matrix(codes, scales, powers, struct, is_exact(part.kind, bits))


def part_of(whole: Matrix, blocks: np.ndarray | slice, groups: np.ndarray | slice) -> Matrix:
    """Some blocks of outputs and groups of inputs, copied."""
    codes, scales = aligned(whole.codes[blocks][:, groups]), aligned(whole.scales[blocks][:, groups])
    powers = aligned(whole.row_scales.reshape(-1, OUTPUTS)[blocks]).reshape(-1)
    rows = whole.struct.rows if isinstance(blocks, slice) else len(blocks) * OUTPUTS
    columns = whole.struct.columns if isinstance(groups, slice) else len(groups) * GROUP
    struct = MatrixStruct(codes.ctypes.data, scales.ctypes.data, powers.ctypes.data, rows, columns, whole.struct.bits, whole.struct.has_minima)
    return Matrix(codes, scales, powers, struct, whole.is_exact)


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes."""
    raw = np.empty(x.nbytes + 64, np.uint8)
    found = raw[-raw.ctypes.data % 64 :][: x.nbytes].view(x.dtype).reshape(x.shape)
    found[...] = x
    return found


def units(places: Tensor, size: int, start: int, num: int) -> np.ndarray:
    """Which units of `size` the places within start .. start + num are."""
    own = places[(places >= start) & (places < start + num)] - start
    return (own[::size] // size).numpy()


def pad(found: Codes) -> Codes:
    """`found` with rows of zeros up to a multiple of OUTPUTS."""
    missing = -len(found.codes) % OUTPUTS
    if not missing:
        return found
    codes, scales, minima = (x if x is None else np.pad(x, ((0, missing), (0, 0))) for x in (found.codes, found.scales, found.minima))
    return Codes(codes, scales, minima)


def interleave(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, columns] -> [blocks, groups, bytes]: 8 registers of 16 outputs by 4 inputs, in half as many of two nibbles

    (register q low, q + 4 high) below 8 bits, then the fifth bits, 64 of each register.
    """
    registers = codes.reshape(len(codes) // OUTPUTS, OUTPUTS, -1, 8, 4).transpose(0, 2, 3, 1, 4)
    flat = np.ascontiguousarray(registers).reshape(*registers.shape[:2], 8, 64)
    if bits == 8:
        return flat.reshape(*flat.shape[:2], -1)
    nibbles = ((flat[:, :, :4] & 15) | (flat[:, :, 4:] << 4)).reshape(*flat.shape[:2], -1)
    if bits == 4:
        return nibbles
    return np.concatenate([nibbles, np.packbits(flat >> 4, axis=-1, bitorder="little").reshape(*flat.shape[:2], -1)], -1)


class NativeLinear:
    """A Linear of parts stacked by rows, each with bits of its own."""

    unit = GROUP  # of inputs; two blocks of outputs

    def __init__(self, parts: tuple[Matrix, ...], dtype: torch.dtype) -> None:
        found = library()
        assert found is not None
        self.lib, self.parts, self.dtype = found, parts, dtype
        self.lib.matrix_apply.argtypes = [pointer, i32, i32, pointer, i32, pointer, i32, i32]
        self.lib.matrix_apply.restype = None
        self.structs = (MatrixStruct * len(parts))(*(part.struct for part in parts))
        self.num_columns, self.num_rows = parts[0].struct.columns, sum(part.struct.rows for part in parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None) -> "NativeLinear":
        groups = slice(None) if columns is None else units(columns, GROUP, 0, self.num_columns)
        found, start = [], 0
        for part in self.parts:
            num = part.struct.rows
            found.append(part_of(part, slice(None) if rows is None else units(rows, OUTPUTS, start, num), groups))
            start += num
        return NativeLinear(tuple(found), self.dtype)

    def apply(self, x: Tensor) -> Tensor:
        """[rows, out_features] in the format's type, of float32 or bfloat16 [rows, in_features]. Raises BadField for another x."""
        if x.dim() != 2 or x.shape[1] != self.num_columns or x.dtype not in (torch.float32, torch.bfloat16):
            raise BadField(f"x is {x.dtype} {list(x.shape)}; must be float32 or bfloat16 [rows, {self.num_columns}]")
        x, y = x.contiguous(), torch.empty(len(x), self.num_rows, dtype=self.dtype)
        self.lib.matrix_apply(
            self.structs, len(self.parts), len(x), x.data_ptr(), x.dtype == torch.bfloat16, y.data_ptr(), self.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )  # fmt: skip
        return y


def pack_linear(parts: tuple[RawTensor, ...], bits: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> NativeLinear:
    """Parts stacked by rows, in codes of `bits` bits each. Raises BadField where they differ in in_features."""
    if len({part.shape[1] for part in parts}) != 1:
        raise BadField(f"parts {', '.join(f'{part.name} {list(part.shape)}' for part in parts)}: all must have the same number of columns")
    return NativeLinear(tuple(pack(part, b) for part, b in zip(parts, bits, strict=True)), dtype)
