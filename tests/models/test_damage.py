"""More than 10,000 damaged files: each one loads and can be read whole, or gives one clear line. Memory stays bounded."""

import random
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from models.gguf_writer import gguf_bytes, tiny_llama
from ponder.core.errors import PonderError
from ponder.models.checkpoint import gguf_checkpoint
from ponder.models.gguf import read_gguf
from ponder.models.tokenizer import gguf_tokenizer

NUM_FILES = 12_000
MAX_PEAK = 4 << 20  # bytes of Python and numpy memory while one file of 15 KB is read
HUGE = (0, 1, 2, 3, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
SETTINGS = (b"head_count", b"block_count", b"embedding_length", b"token_id", b"dimension_count", b"tokens", b"merges", b"scores")
WHOLE = gguf_bytes(*tiny_llama(np.random.default_rng(0)))
HEADER_LEN = WHOLE.index(b"blk.0.ffn_norm.weight") + 64
SPM = tiny_llama(np.random.default_rng(1))
SPM[0].update({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": np.arange(24, dtype=np.float32)})
OTHER = gguf_bytes(*SPM)


def flip_bits(rng: random.Random, raw: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        raw[rng.randrange(min(HEADER_LEN, len(raw)))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, raw: bytearray) -> None:
    del raw[max(1, rng.choice((rng.randrange(len(raw)), rng.randrange(HEADER_LEN)))) :]


def splice(rng: random.Random, raw: bytearray) -> None:
    """A run of bytes from one place of either file over another place, of the same length or not."""
    start, length = rng.randrange(HEADER_LEN), rng.randrange(1, 200)
    source = rng.choice((WHOLE, OTHER))
    at = rng.randrange(HEADER_LEN)
    raw[at : at + rng.choice((length, length, 0, 8))] = source[start : start + length]


def huge_field(rng: random.Random, raw: bytearray) -> None:
    """A 4- or 8-byte field anywhere in the header gets a treacherous value."""
    form = rng.choice(("<I", "<Q"))
    at = rng.randrange(HEADER_LEN)
    raw[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(HUGE) % (1 << 8 * struct.calcsize(form)))


def known_number(rng: random.Random, raw: bytearray) -> None:
    """The value of a known setting becomes another number, so that what is built on it is tried."""
    start = raw.find(
        rng.choice((b"head_count", b"block_count", b"embedding_length", b"token_id", b"dimension_count", b"vocab", b"tokens", b"merges"))
    )
    at = max(4, start + rng.randrange(10, 60))
    raw[at : at + 4] = struct.pack("<I", rng.choice(HUGE) % 2**32)


DAMAGES = (flip_bits, flip_bits, truncate, splice, huge_field, known_number)


def load_all(path: Path) -> str:
    """Opens the file and reads everything that it offers. The outcome, in a word."""
    try:
        gguf = read_gguf(path)
        for name in gguf.tensors:
            gguf.blocks(name).sum()
        checkpoint = gguf_checkpoint(gguf)
        for name in checkpoint.entries:
            checkpoint.tensor(name).dense()
        tokenizer = gguf_tokenizer(gguf)
        tokenizer.decode(tokenizer.encode("abcabc <s>", parse_special=True))
        tokenizer.render((("user", "abc"),))
    except PonderError as error:
        assert "\n" not in str(error)
        return type(error).__name__
    return "loads"


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_are_read_or_refused(tmp_path: Path, part: int):
    rng, outcomes, path = random.Random(part), Counter(), tmp_path / "damaged.gguf"
    path.write_bytes(WHOLE)
    load_all(path)  # what is loaded once for all is not the file's
    tracemalloc.start()
    try:
        for i in range(NUM_FILES // 4):
            raw = bytearray(rng.choice((WHOLE, OTHER)))
            for _ in range(rng.choice((1, 1, 2))):
                rng.choice(DAMAGES)(rng, raw)
            path.unlink()  # a mapped file must not be cut
            path.write_bytes(raw)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            outcomes[load_all(path)] += 1
            assert tracemalloc.get_traced_memory()[1] - before < MAX_PEAK, f"file {i} of part {part}"
            assert time.perf_counter() - start < 10, f"file {i} of part {part}"
    finally:
        tracemalloc.stop()
    assert {"loads", "BadModelFile", "Unsupported"} <= outcomes.keys()
    assert min(outcomes["loads"], outcomes["BadModelFile"], outcomes["Unsupported"]) > NUM_FILES // 400
