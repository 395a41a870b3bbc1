"""A tokenizer whose tokens are bytes, for models that are made for a law."""

from dataclasses import dataclass

VOCAB = 272  # 256 bytes, then control tokens; a multiple of 16
END = 256


@dataclass(frozen=True)
class ByteTokenizer:
    """A Tokenizer whose ids are bytes. A prompt is its messages, each ended by a control token."""

    vocab_size: int = VOCAB
    eos_ids: frozenset[int] = frozenset({END})
    pieces: tuple[bytes, ...] = (*(bytes([i]) for i in range(256)), *[b""] * (VOCAB - 256))

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        return [t for _, text in messages for t in (*text.encode(), END + 1)] + list(prefill.encode())
