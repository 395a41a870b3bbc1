"""tokenizer.model files: the ids that the library which trained them gives, with what a folder adds; damage and other kinds are refused."""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.sentencepiece import read_sentencepiece
from ponder.models.tokenizer import TextTokenizer, open_tokenizer

FILES = Path(__file__).parent / "sentencepiece"
EXPECTED = json.loads((FILES / "ids.json").read_text())
SIZES = {"llama": 430, "gemma": 430, "plain": 150}
NO_SPACE = {  # no space is put before a text that begins with a token of its own, as in llama.cpp
    "llama": {"<|user|>": [4], "<|user|>\nhi<|end|>": [4, 338]},
}


def folder(path: Path, name: str, extra: dict[str, object] | None = None, **config: object) -> Path:
    shutil.copy(FILES / f"{name}.model", path / "tokenizer.model")
    (path / "config.json").write_text(json.dumps({"vocab_size": SIZES[name], "model_type": "llama", "eos_token_id": 2} | config))
    (path / "tokenizer_config.json").write_text(json.dumps(extra or {}))
    return path


def differing(tokenizer: TextTokenizer, name: str) -> list[str]:
    """Texts whose ids are not those of the library."""
    return [t for t, ids in zip(EXPECTED["texts"], EXPECTED["ids"][name], strict=True) if tokenizer.encode(t) != ids]


@pytest.mark.parametrize("name", SIZES)
def test_ids_are_the_librarys(tmp_path: Path, name: str):
    tokenizer = open_tokenizer(folder(tmp_path, name))
    known = NO_SPACE.get(name, {})
    assert differing(tokenizer, name) == list(known)
    assert all(tokenizer.encode(text)[: len(ids)] == ids for text, ids in known.items())
    assert tokenizer.vocab_size == SIZES[name]
    assert (tokenizer.bos_id, tokenizer.is_space_prefixed) == ((2, False) if name == "gemma" else (1, True))
    if name != "plain":
        assert [t for t in EXPECTED["texts"] if t not in known and tokenizer.decode(tokenizer.encode(t)) != t] == []


def flipped(score: re.Match[bytes]) -> bytes:
    """The field of a score with the other sign."""
    return b"\x15" + score[1] + bytes([score[2][0] - 128])


WRONG: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a space before the text": ("gemma", lambda data: data + message(3, number(3, 1))),
    "no space before the text": ("llama", lambda data: data + message(3, number(3, 0))),
    "scores the other way round": ("llama", lambda data: re.sub(rb"\x15(.{3})([\xbf-\xc3])", flipped, data, flags=re.DOTALL)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ids_are_seen(tmp_path: Path, name: str):
    kind, change = WRONG[name]
    path = folder(tmp_path, kind) / "tokenizer.model"
    path.write_bytes(change(path.read_bytes()))
    assert len(differing(open_tokenizer(tmp_path), kind)) > 5


# ---- what the folder adds


def test_a_folder_adds_tokens_and_a_template(tmp_path: Path):
    added = {
        "430": {"content": "<|im_end|>", "special": True},
        "431": {"content": "<tool>", "special": False},
        "0": {"content": "<unk>", "special": True},
    }
    extra = {"added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 432, "<tool>": 431}))
    tokenizer = open_tokenizer(folder(tmp_path, "llama", extra, vocab_size=440))
    assert tokenizer.vocab_size == 440
    assert tokenizer.eos_ids == {2, 3, 430}  # </s>, and by their names <|end|>, <|im_end|>
    assert tokenizer.encode("<tool>")[-1] == 431 and tokenizer.pieces[431] == b"<tool>"
    assert tokenizer.encode("<|im_start|>", parse_special=True) == [432] and 432 not in tokenizer.encode("<|im_start|>")
    assert tokenizer.pieces[435] == tokenizer.pieces[430] == b""
    assert tokenizer.render((("user", "hi"),)) == [1, *tokenizer.encode("hi")]


def test_bos_may_be_declined(tmp_path: Path):
    assert open_tokenizer(folder(tmp_path, "llama", {"add_bos_token": False})).bos_id is None


@pytest.mark.parametrize(
    ("extra", "config", "message"),
    [
        ({}, {"vocab_size": 429}, "430 tokens, but the model's vocab_size is 429"),
        ({}, {"vocab_size": None}, "vocab_size is None"),
        ({"added_tokens_decoder": {"430": {"content": "x"}}}, {}, "added token 'x' has id 430; ids are 0 to 429"),
        ({"added_tokens_decoder": {"1": {"content": 5}}}, {}, "added token 5"),
        ({"added_tokens_decoder": {"one": {"content": "x"}}}, {}, "must map ids to tokens"),
        ({"added_tokens_decoder": [1]}, {}, "must map ids to tokens"),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path: Path, extra: dict[str, object], config: dict[str, object], message: str):
    with pytest.raises(BadModelFile, match=message):
        open_tokenizer(folder(tmp_path, "llama", extra, **config))


# ---- the file itself; a field that comes again overrides the earlier one


def varint(value: int) -> bytes:
    low = [value >> 7 * i & 127 for i in range(max(1, -(-value.bit_length() // 7)))]
    return bytes([b | 128 for b in low[:-1]] + low[-1:])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (message(2, number(3, 1)), "a Unigram model"), (message(2, number(3, 9)), "a 9 model"),
        (message(2, number(24, 1)), "end of words"),
        (message(3, number(4, 1)), "removes extra spaces"), (message(3, number(5, 0)), "does not escape"),
        (message(3, message(2, b"map")), "normalises"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused(tmp_path: Path, more: bytes, what: str):
    path = folder(tmp_path, "llama") / "tokenizer.model"
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(Unsupported, match=rf"{what}.*save its tokenizer with transformers"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "holds no pieces"), (b"\x0a\x0b", "field 1 needs 11 bytes"), (b"\x0a\xff", "a number runs past the end"),
        (b"\xff" * 11, "more than 70 bits"),
        (b"\x0b", "wire type 3"), (b"\x02\x00", "a field 0"), (message(1, message(1, b"\xff")), "not UTF-8"), (message(1, number(3, 7)), "type 7"),
        (message(1, number(1, 5)), "a number where bytes belong"), (number(1, 5), "a number where bytes belong"),
        (message(1, message(3, b"x")), "bytes where"),
        (message(1, message(2, b"x")), "no float"), (message(1, varint(2 << 3 | 5) + struct.pack("<f", float("nan"))), "no number"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, data: bytes, what: str):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(BadModelFile, match=what):
        read_sentencepiece(path)


def test_damaged_files_open_or_are_refused(tmp_path: Path):
    """Cut anywhere, or with bytes changed: nothing but BadModelFile and Unsupported, and many of them."""
    path, rng, refused = folder(tmp_path, "llama") / "tokenizer.model", random.Random(0), 0
    data = path.read_bytes()
    for trial in range(250):
        some = bytearray(data)
        for _ in range(rng.randint(0, 3) if trial % 2 else 1):
            some[rng.randrange(len(some))] = rng.randrange(256)
        path.write_bytes(some[: rng.randrange(len(some))] if trial % 2 else some)
        try:
            open_tokenizer(tmp_path)
        except (BadModelFile, Unsupported):
            refused += 1
    assert 100 < refused < 250


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BadModelFile, match="no such file"):
        read_sentencepiece(tmp_path / "tokenizer.model")
