"""Reads a SentencePiece model (tokenizer.model) as the metadata that a GGUF file of the same model has.

Format     a protocol buffer ModelProto: 1 pieces {1 text, 2 float score, 3 type}, 2 trainer_spec {3 model type, 24 white space is a suffix,
           40 .. 43 ids of unk, bos, eos, pad}, 3 normalizer_spec {2 map of characters, 3 .. 5 dummy prefix, extra spaces removed, spaces escaped}
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.files import ModelFile
from ponder.models.vocabulary import BYTE, NORMAL, USER_DEFINED

MAX_NBYTES = 1 << 28
BPE = 2
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
MEND = "save its tokenizer with transformers, which writes tokenizer.json"
IDS = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}  # role -> field, default

Value = int | memoryview


@dataclass(frozen=True)
class Message:
    """A part of the file from byte `start` on. Every read is checked against its end."""

    path: Path
    data: memoryview
    start: int

    def bad(self, why: str, at: int) -> BadModelFile:
        return BadModelFile(f"{self.path}: {why} at byte {self.start + at}; not a SentencePiece model, or a damaged one")

    def fields(self) -> Iterator[tuple[int, Value, int]]:
        """(number, value, where the value begins), in order. Raises BadModelFile."""
        at, data, end = 0, self.data, len(self.data)
        while at < end:
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            if not number or wire not in (VARINT, FIXED64, LENGTH, FIXED32):
                raise self.bad(f"a field {number} of wire type {wire}", at)
            if wire == VARINT:
                begin = at
                value, at = self._varint(at)
                yield number, value, begin
                continue
            size = 8 if wire == FIXED64 else 4
            if wire == LENGTH:
                size, at = self._varint(at)
            if size > end - at:
                raise self.bad(f"field {number} needs {size} bytes, but {end - at} are left,", at)
            yield number, data[at : at + size], at
            at += size

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(self.data):
                raise self.bad("a number runs past the end", at)
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise self.bad("a number of more than 70 bits", at)

    def number(self, value: Value, at: int) -> int:
        """A varint as the signed 32 bits that it stands for."""
        if not isinstance(value, int):
            raise self.bad("bytes where a number belongs", at)
        low = value & 0xFFFFFFFF
        return low - (1 << 32) if low >> 31 else low

    def inner(self, value: Value, at: int) -> "Message":
        if isinstance(value, int):
            raise self.bad("a number where bytes belong", at)
        return Message(self.path, value, self.start + at)


def read_sentencepiece(path: Path) -> dict[str, object]:
    """Metadata under GGUF's names. Raises BadModelFile; Unsupported for models that are not BPE, and for text that is normalised."""
    file = ModelFile(path)
    if file.size > MAX_NBYTES:
        raise BadModelFile(f"{path}: {file.size} bytes; a SentencePiece model has at most {MAX_NBYTES}")
    message = Message(path, memoryview(file.read(0, file.size)).toreadonly(), 0)
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    for number, value, at in message.fields():
        if number == 1:
            text, score, kind = _piece(message.inner(value, at))
            texts.append(text.replace("\u2581", " ") if kind == USER_DEFINED else text)  # found in the text before its spaces are escaped
            scores.append(score)
            types.append(kind)
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_settings(message.inner(value, at)))
    if not texts:
        raise BadModelFile(f"{path}: holds no pieces; not a SentencePiece model, or a damaged one")
    _check(path, trainer, normalizer)
    ids = {f"tokenizer.ggml.{role}_token_id": found for role, (field, usual) in IDS.items() if (found := trainer.get(field, usual)) >= 0}
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": texts, "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32), "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)), **ids,
    }  # fmt: skip


def _piece(message: Message) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value, at in message.fields():
        if number == 1:
            try:
                text = str(message.inner(value, at).data, "utf-8")
            except UnicodeDecodeError as error:
                raise message.bad("a piece that is not UTF-8", at) from error
        elif number == 2:
            data = message.inner(value, at).data
            if len(data) != 4:
                raise message.bad("a score that is no float", at)
            (score,) = struct.unpack("<f", data)
        elif number == 3:
            kind = message.number(value, at)
            if not NORMAL <= kind <= BYTE:
                raise message.bad(f"a piece of type {kind}", at)
    if score != score:
        raise message.bad("a score that is no number", 0)
    return text, score, kind


def _settings(message: Message) -> dict[int, int]:
    """Fields that are numbers, and the lengths of those that are bytes."""
    return {number: message.number(value, at) if isinstance(value, int) else len(value) for number, value, at in message.fields()}


def _check(path: Path, trainer: dict[int, int], normalizer: dict[int, int]) -> None:
    """What changes ids, and is not computed here, is refused."""
    kind = trainer.get(3, 1)
    rules = (
        (kind == BPE, f"a {MODEL_TYPES.get(kind, kind)} model, not a BPE one"),
        (not normalizer.get(2), "a model that normalises characters"),
        (not normalizer.get(4, 1), "a model that removes extra spaces"),
        (normalizer.get(5, 1) == 1, "a model that does not escape spaces"),
        (not trainer.get(24), "a model that puts the space at the end of words"),
    )
    for is_fine, what in rules:
        if not is_fine:
            raise Unsupported(f"{path}: {what}, which is not supported; {MEND}")
