"""Exact decoders of the storage kinds of model files: raw bytes -> float32.

A kind stores a row as consecutive blocks of `values` numbers in `nbytes` bytes, little endian. Arithmetic is float32 in
the order of the published reference decoders, so results are equal to theirs bit for bit.

Paper      none; layouts as in ggml's block structs (block_q4_0 ... block_q6_K)
Equation   4/5/8-bit: x = d q (+ m);  K kinds: x = (d scale) q (- dmin min), scale and min per sub-block
Shapes     blocks uint8 [rows, bytes per row] -> float32 [rows, columns]
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 17  # values decoded at once: bounds the temporaries
SUPER = 256  # values of a K block


@dataclass(frozen=True)
class Kind:
    """A storage kind. `decode` maps uint8 [n, nbytes] to float32 [n, values]."""

    name: str
    values: int  # numbers per block
    nbytes: int  # bytes per block
    decode: Callable[[np.ndarray], np.ndarray]

    def row_nbytes(self, columns: int) -> int:
        """Bytes of a row of `columns` numbers; columns must be a multiple of `values`."""
        return columns // self.values * self.nbytes


def dequantize(kind: Kind, blocks: np.ndarray) -> np.ndarray:
    """Float32 [rows, columns] of raw uint8 [rows, bytes per row]. Temporaries stay within a few CHUNKs, whatever the size."""
    rows, row_nbytes = blocks.shape
    per_row = row_nbytes // kind.nbytes
    out = np.empty((rows, per_row * kind.values), dtype=np.float32)
    step = max(1, CHUNK // max(1, out.shape[1]))
    with np.errstate(all="ignore"):  # a NaN or inf scale is the file's business; it must not become a warning
        for start in range(0, rows, step):
            part = np.ascontiguousarray(blocks[start : start + step]).reshape(-1, kind.nbytes)
            out[start : start + step] = kind.decode(part).reshape(-1, out.shape[1])
    return out


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """float32 [n, 1] of the float16 at byte `start`."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, k] -> [n, 2k]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 4] -> [n, 32], each 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _f32(b: np.ndarray) -> np.ndarray:
    return b.view(np.float32)


def _f16(b: np.ndarray) -> np.ndarray:
    return b.view(np.float16).astype(np.float32)


def _bf16(b: np.ndarray) -> np.ndarray:
    return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(b: np.ndarray) -> np.ndarray:
    return b[:, 2:].view(np.int8).astype(np.float32) * _half(b, 0)


def _q4_0(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * (_nibbles(b[:, 2:]).view(np.int8) - 8).astype(np.float32)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: np.ndarray) -> np.ndarray:
    q = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
    return _half(b, 0) * (q.view(np.int8) - 16).astype(np.float32)


def _q5_1(b: np.ndarray) -> np.ndarray:
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _half(b, 0) * q.astype(np.float32) + _half(b, 2)


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 12] -> scales and minima, float32 [n, 8], as Q4_K and Q5_K pack them."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    minima = np.concatenate([mid & 0x3F, (high >> 4) | ((mid >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scale_and_shift(b: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d scale q - dmin min over 8 sub-blocks of 32; q uint8 [n, 8, 32]."""
    scales, minima = _six_bit_pairs(b[:, 4:16])
    scale, shift = (_half(b, 0) * scales)[:, :, None], (_half(b, 2) * minima)[:, :, None]
    return (scale * q.astype(np.float32) - shift).reshape(-1, SUPER)


def _split_nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 128] -> [n, 8, 32]: each run of 32 bytes holds a sub-block of low and one of high nibbles."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(b: np.ndarray) -> np.ndarray:
    return _scale_and_shift(b, _split_nibbles(b[:, 16:]))


def _q5_k(b: np.ndarray) -> np.ndarray:
    fifth = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _scale_and_shift(b, _split_nibbles(b[:, 48:]) | (fifth << 4))


def _q6_k(b: np.ndarray) -> np.ndarray:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], dtype=np.uint8)[:, None]
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    q = (low & 0x0F).reshape(-1, SUPER) | ((high & 3) << 4).reshape(-1, SUPER)
    scale = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    values = (q.view(np.int8) - 32).astype(np.float32).reshape(-1, 16, 16)
    return (scale[:, :, None] * values).reshape(-1, SUPER)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("F32", 1, 4, _f32),
        Kind("F16", 1, 2, _f16),
        Kind("BF16", 1, 2, _bf16),
        Kind("Q8_0", 32, 34, _q8_0),
        Kind("Q4_0", 32, 18, _q4_0),
        Kind("Q4_1", 32, 20, _q4_1),
        Kind("Q5_0", 32, 22, _q5_0),
        Kind("Q5_1", 32, 24, _q5_1),
        Kind("Q4_K", 256, 144, _q4_k),
        Kind("Q5_K", 256, 176, _q5_k),
        Kind("Q6_K", 256, 210, _q6_k),
    )
}
