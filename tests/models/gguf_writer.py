"""Writes small GGUF files by hand, so that tests can damage every part of one on purpose."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CODES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
DTYPES = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}


@dataclass(frozen=True)
class Stored:
    """A tensor to write: shape with the slowest dimension first, raw uint8 data."""

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


def f32(values: np.ndarray) -> Stored:
    """`values` stored as they are."""
    array = np.ascontiguousarray(values, dtype="<f4")
    return Stored("F32", array.shape, array.view(np.uint8))


def gguf_bytes(metadata: Mapping[str, object], tensors: Mapping[str, Stored], alignment: int = 32, version: int = 3) -> bytes:
    """A whole file. Python ints become u32 (i64 where negative, u64 where large), floats f64, numpy scalars their own type."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        dims = tuple(reversed(tensor.shape))
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, CODES[tensor.kind], len(data))
        data += tensor.data.tobytes()
    return head + b"\0" * (-len(head) % alignment) + data


def tiny_llama(rng: np.random.Generator, *, dim: int = 32, num_tokens: int = 24, num_layers: int = 1) -> tuple[dict[str, object], dict[str, Stored]]:
    """Metadata and tensors of a llama with 4 heads of 8, 2 key heads, and a byte-level vocabulary of a few letters."""
    letters = [chr(c) for c in range(ord("a"), ord("a") + num_tokens - 6)]
    texts = ["<unk>", "<s>", "</s>", "<tool>", *letters, "ab", "abc"]
    types = np.array([2, 3, 3, 4] + [1] * (num_tokens - 4), dtype=np.int32)
    metadata: dict[str, object] = {
        "general.architecture": "llama", "llama.block_count": num_layers, "llama.embedding_length": dim, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.context_length": 128,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5), "llama.rope.freq_base": np.float32(1e4), "llama.rope.dimension_count": dim // 4,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["a b", "ab c"], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ bos_token }}{{ m.role }}{{ m.content }}{{ eos_token }}{% endfor %}",
    }  # fmt: skip
    tensors = {"token_embd.weight": q8_0(rng, num_tokens, dim), "output_norm.weight": f32(rng.normal(size=dim))}
    for i in range(num_layers):
        sizes = {"attn_q": (dim, dim), "attn_k": (dim // 2, dim), "attn_v": (dim // 2, dim), "attn_output": (dim, dim), "ffn_gate": (64, dim)}
        sizes |= {"ffn_up": (64, dim), "ffn_down": (dim, 64)}
        tensors |= {f"blk.{i}.{part}.weight": q8_0(rng, *size) for part, size in sizes.items()}
        tensors |= {f"blk.{i}.{part}.weight": f32(rng.normal(size=dim)) for part in ("attn_norm", "ffn_norm")}
    return metadata, tensors


def q8_0(rng: np.random.Generator, rows: int, columns: int) -> Stored:
    """A random matrix of scale 1/32 in blocks of 32."""
    scales = np.full((rows, columns // 32, 1), 1 / 4096, dtype=np.float16).view(np.uint8)
    numbers = rng.integers(-127, 128, (rows, columns // 32, 32)).astype(np.int8).view(np.uint8)
    return Stored("Q8_0", (rows, columns), np.concatenate([scales, numbers], axis=2))


def write(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, Stored]) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: object) -> bytes:
    kind, raw = _value(value)
    return struct.pack("<I", kind) + raw


def _value(value: object) -> tuple[int, bytes]:
    """(value type, bytes)."""
    if isinstance(value, str):
        return 8, _string(value)
    if isinstance(value, list):
        parts = [_value(v) for v in value]
        kind = parts[0][0] if parts else 8
        return 9, struct.pack("<IQ", kind, len(parts)) + b"".join(raw for _, raw in parts)
    if isinstance(value, np.ndarray):
        return 9, struct.pack("<IQ", DTYPES[value.dtype.str[1:]], len(value)) + value.tobytes()
    if isinstance(value, bool):
        return 7, bytes([value])
    form = ("<i8" if value < 0 else "<u4" if value < 2**32 else "<u8") if isinstance(value, int) else None
    array = np.asarray(value, dtype=form)
    return DTYPES[array.dtype.str[1:]], array.tobytes()
