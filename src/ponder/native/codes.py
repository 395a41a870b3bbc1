"""Codes and scales of a matrix's rows: those of the file's own blocks where it has some that fit, else quantised by groups of 32.

Equation   w = scale (code - zero), zero = 2^(bits - 1); with minima w = scale code + minimum. code in 0 .. 2^bits - 1.
Shapes     codes uint8 [rows, columns padded to 32]; scales, minima float32 [rows, groups]. Padding has codes that multiply zeros.

    stored     bits  exact   as
    Q4_0       4     yes     scale d, zero 8
    Q4_1 Q4_K  4     yes     scale and minimum of the block (Q4_K: products d * scale, -dmin * min)
    Q5_0       5     yes     scale d, zero 16
    Q5_1 Q5_K  5     yes     scale and minimum
    Q8_0       8     yes     scale d, zero 128
    others     8     no      scale largest / 127 of the group: half a step, 1/254 of its largest weight. (Q6_K has groups of 16.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ponder.core.formats import RawTensor

GROUP = 32
CHUNK = 1 << 20  # weights in float32 or in wide codes at a time
STORED_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q8_0": 8}
SUB_BLOCKS = 8  # of 32 weights, in a block of a K kind


@dataclass(frozen=True)
class Codes:
    """Some rows of a matrix."""

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray | None


def stored_bits(kind: str) -> int:
    """Bits that keep what a storage kind holds."""
    return STORED_BITS.get(kind, 8)


def row_chunks(part: RawTensor) -> list[tuple[int, int]]:
    """(start, stop) of runs of rows, multiples of 16 but the last, that hold about CHUNK weights."""
    step = max(16, CHUNK // part.shape[1] // 16 * 16)
    return [(start, min(start + step, part.shape[0])) for start in range(0, part.shape[0], step)]


def has_minima(kind: str, bits: int) -> bool:
    """Whether `codes_of` gives minima."""
    return kind in ("Q4_1", "Q4_K", "Q5_1", "Q5_K") if is_kept(kind, bits) else bits < 8


def is_kept(kind: str, bits: int) -> bool:
    """Whether codes of `bits` bits hold what the blocks of a kind hold."""
    return STORED_BITS.get(kind, 9) <= bits


def is_exact(kind: str, bits: int) -> bool:
    """Whether that is all they hold: K kinds have scales that are products, which are rounded to float16."""
    return is_kept(kind, bits) and not kind.endswith("_K")


def codes_of(part: RawTensor, bits: int) -> Iterator[tuple[int, Codes]]:
    """(first row, codes of `bits` bits) of runs of rows; exact where `is_kept`."""
    for start, stop in row_chunks(part):
        if is_kept(part.kind, bits):
            yield start, unpack(part.kind, part.blocks(start, stop), bits)
        else:
            yield start, quantise(part.dense(start, stop).numpy(), bits)


def unpack(kind: str, blocks: np.ndarray, bits: int) -> Codes:
    """Stored blocks uint8 [rows, bytes per row] as codes of at least as many bits as they have."""
    raw, own = np.ascontiguousarray(blocks), STORED_BITS[kind]
    found = BLOCKS[kind](raw.reshape(len(raw), -1, BLOCK_NBYTES[kind]))
    if found.minima is None and own < bits:
        return Codes(found.codes + np.uint8((1 << bits - 1) - (1 << own - 1)), found.scales, None)
    return found


def quantise(weight: np.ndarray, bits: int) -> Codes:
    """float32 [rows, columns] by the range of each group (with minima) below 8 bits, by its largest weight at 8.

    Scales are rounded to float16 of the row's power of two first, so that codes make up for it.
    """
    num_rows, columns = weight.shape
    num_groups = -(-columns // GROUP)
    w = np.zeros((num_rows, num_groups * GROUP), np.float32)
    w[:, :columns] = weight
    w = w.reshape(num_rows, num_groups, GROUP)
    if bits == 8:
        largest = np.abs(w).max(-1)
        scales = halves(largest / 127, row_scales(largest / 127))
        codes = np.clip(np.rint(w / np.where(scales > 0, scales, 1)[..., None]), -127, 127) + 128
        return Codes(codes.astype(np.uint8).reshape(num_rows, -1), scales, None)
    top = (1 << bits) - 1
    low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
    scales, minima = (high - low) / top, low
    powers = row_scales(np.maximum(scales, np.abs(minima)))
    scales, minima = halves(scales, powers), halves(minima, powers)
    codes = np.clip(np.rint((w - minima[..., None]) / np.where(scales > 0, scales, 1)[..., None]), 0, top)
    return Codes(codes.astype(np.uint8).reshape(num_rows, -1), scales, minima)


def row_scales(largest: np.ndarray) -> np.ndarray:
    """float32 [rows]: the power of two that brings a row's largest scale or minimum, of [rows, groups], to 2^14 .. 2^15."""
    _, exponent = np.frexp(largest.max(-1))
    return np.ldexp(np.float32(1), np.clip(exponent - 15, -100, 100)).astype(np.float32)


def halves(x: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """x [rows, groups] rounded to float16 multiples of the rows' powers."""
    return (x / powers[:, None]).astype(np.float16).astype(np.float32) * powers[:, None]


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """float32 [rows, blocks] of the float16 at byte `start`."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0].astype(np.float32)


def _flat(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(len(codes), -1)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([packed & 15, packed >> 4], -1)


def _fifths(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little") << 4


def _q4_0(b: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(b[..., 2:])), _half(b, 0), None)


def _q4_1(b: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(b[..., 4:])), _half(b, 0), _half(b, 2))


def _q5_0(b: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(b[..., 6:]) | _fifths(b[..., 2:6])), _half(b, 0), None)


def _q5_1(b: np.ndarray) -> Codes:
    return Codes(_flat(_nibbles(b[..., 8:]) | _fifths(b[..., 4:8])), _half(b, 0), _half(b, 2))


def _q8_0(b: np.ndarray) -> Codes:
    return Codes(_flat(b[..., 2:] ^ 128), _half(b, 0), None)


def _six_bits(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [rows, groups] of K blocks: float16 factors times six-bit integers, packed in 12 bytes."""
    low, mid, high = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], -1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 2) & 48)], -1)
    return _flat(_half(b, 0)[..., None] * scales), _flat(-_half(b, 2)[..., None] * minima)


def _runs(packed: np.ndarray) -> np.ndarray:
    """uint8 [rows, blocks, 128] -> [rows, blocks, 8, 32]: a run of 32 bytes holds one group of low and one of high nibbles."""
    runs = packed.reshape(*packed.shape[:2], 4, 1, GROUP)
    return np.concatenate([runs & 15, runs >> 4], 3).reshape(*packed.shape[:2], SUB_BLOCKS, GROUP)


def _q4_k(b: np.ndarray) -> Codes:
    return Codes(_flat(_runs(b[..., 16:])), *_six_bits(b))


def _q5_k(b: np.ndarray) -> Codes:
    fifth = (b[..., None, 16:48] >> np.arange(SUB_BLOCKS, dtype=np.uint8)[:, None]) & 1
    return Codes(_flat(_runs(b[..., 48:]) | (fifth << 4)), *_six_bits(b))


BLOCKS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k}
BLOCK_NBYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176}
