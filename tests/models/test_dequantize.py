"""Block decoders equal the reference ones bit for bit, on random bytes of every kind, infinities and NaN scales included."""

from dataclasses import replace

import gguf as reference
import numpy as np
import pytest

from ponder.models import dequantize as module
from ponder.models.dequantize import CHUNK, KINDS, Kind, dequantize


def random_blocks(kind: Kind, rows: int, per_row: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, per_row * kind.nbytes), dtype=np.uint8)


def expected(kind: Kind, blocks: np.ndarray) -> np.ndarray:
    """What the gguf package makes of the same bytes."""
    dtype = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    with np.errstate(all="ignore"):
        if dtype is not None:
            return blocks.view(dtype).astype(np.float32)
        return reference.dequantize(blocks, reference.GGMLQuantizationType[kind.name]).astype(np.float32)


def law_bits_equal(kind: Kind) -> bool:
    blocks = random_blocks(kind, 200, 6)
    return np.array_equal(dequantize(kind, blocks).view(np.uint32), expected(kind, blocks).view(np.uint32))


@pytest.mark.parametrize("name", KINDS)
def test_bits_equal(name: str):
    assert law_bits_equal(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_sizes_equal(name: str):
    kind = KINDS[name]
    assert (kind.values, kind.nbytes) == reference.GGML_QUANT_SIZES[reference.GGMLQuantizationType[name]]
    assert kind.row_nbytes(3 * kind.values) == 3 * kind.nbytes


@pytest.mark.parametrize("name", KINDS)
def test_chunks_do_not_show(name: str):
    """More values than a chunk, rows that do not divide it, and one row that is longer than it."""
    kind = KINDS[name]
    for rows, per_row in ((7, CHUNK // kind.values // 3 + 1), (2, CHUNK // kind.values + 3)):
        blocks = random_blocks(kind, rows, per_row)
        each = np.concatenate([dequantize(kind, blocks[i : i + 1]) for i in range(rows)])
        assert np.array_equal(dequantize(kind, blocks).view(np.uint32), each.view(np.uint32))


def test_no_rows():
    assert dequantize(KINDS["Q4_K"], random_blocks(KINDS["Q4_K"], 0, 2)).shape == (0, 512)


def swapped_nibbles(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q4_1"].decode(np.concatenate([blocks[:, :4], blocks[:, 4:] >> 4 | blocks[:, 4:] << 4], axis=1))


def interleaved_nibbles(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q4_0"].decode(blocks).reshape(-1, 2, 16).swapaxes(1, 2).reshape(-1, 32)


def no_fifth_bit(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q5_0"].decode(np.concatenate([blocks[:, :2], blocks[:, 2:6] * 0, blocks[:, 6:]], axis=1))


def unsigned_scales(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q6_K"].decode(np.concatenate([blocks[:, :192], blocks[:, 192:208] & 0x7F, blocks[:, 208:]], axis=1))


def low_scale_bits_only(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q4_K"].decode(np.concatenate([blocks[:, :4], blocks[:, 4:12] & 0x3F, blocks[:, 12:]], axis=1))


def shift_not_subtracted(blocks: np.ndarray) -> np.ndarray:
    return KINDS["Q5_K"].decode(np.concatenate([blocks[:, :2], blocks[:, 2:4] * 0, blocks[:, 4:]], axis=1))


TEETH = {
    "Q4_1": swapped_nibbles, "Q4_0": interleaved_nibbles, "Q5_0": no_fifth_bit, "Q6_K": unsigned_scales, "Q4_K": low_scale_bits_only,
    "Q5_K": shift_not_subtracted,
}  # fmt: skip


@pytest.mark.parametrize("name", TEETH)
def test_law_has_teeth(name: str):
    assert not law_bits_equal(replace(KINDS[name], decode=TEETH[name]))


def test_kinds_are_the_promised_ones():
    assert set(module.KINDS) == {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"}
