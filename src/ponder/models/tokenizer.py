"""Text <-> ids. One class for every model; `gguf_tokenizer` and `folder_tokenizer` build it from a file.

decode(encode(x)) == x for every text that can be UTF-8, with three exceptions that come from the model's own design:
a folder whose tokenizer.json normalises text (NFC), SentencePiece models, which cannot tell U+2581 from a space, and
vocabularies that lack some bytes.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import tokenizers

from ponder.core.errors import BadField, BadModelFile, Unsupported
from ponder.models.chat_template import ChatTemplate, Messages, compile_template, one_line, plain_text
from ponder.models.checkpoint import FileCheckpoint, gguf_checkpoint, open_checkpoint, read_json
from ponder.models.gguf import Gguf, read_gguf
from ponder.models.sentencepiece import read_sentencepiece
from ponder.models.vocabulary import MAX_VOCAB, add_tokens, byte_level_bytes, read_vocabulary, spaced, spaced_bytes

# control tokens that end a reply in some family, whatever the file calls its eos
END_NAMES = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<|eot|>")


@dataclass(frozen=True)
class TextTokenizer:
    """A core.formats.Tokenizer. Safe to share between threads."""

    core: tokenizers.Tokenizer
    pieces: tuple[bytes, ...]
    eos_ids: frozenset[int]
    bos_id: int | None  # what `render` begins with; None where the model wants no bos
    is_space_prefixed: bool  # encode puts a space before the text, as SentencePiece models were trained
    template: ChatTemplate | None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of `text`, without bos. parse_special: names of control tokens in the text become those tokens.

        Raises BadField for text that has no UTF-8 form (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadField(f"text holds a lone surrogate {text[error.start]!a} at {error.start}, which has no UTF-8 form; remove it") from error
        with self.lock:
            self.core.encode_special_tokens = not parse_special
            return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, and control tokens vanish. Raises BadField for an unknown id."""
        bad = [i for i in ids if not 0 <= i < len(self.pieces)]
        if bad:
            raise BadField(f"token id {bad[0]}: the model's ids are 0 to {len(self.pieces) - 1}")
        text = b"".join([self.pieces[i] for i in ids]).decode(errors="replace")
        return text.removeprefix(" ") if self.is_space_prefixed else text

    def render(self, messages: Messages, prefill: str = "") -> list[int]:
        """Ids of a conversation up to where the assistant's reply begins (see core.formats.Tokenizer), then of `prefill`.

        Names of control tokens inside messages are parsed too, as every engine does; those inside prefill are not.
        Raises BadField for no messages, a "raw" one among others, or messages that the template refuses.
        """
        text = self._prompt_text(messages)
        if self.is_space_prefixed:  # on its own, prefill would begin with one more space
            text, prefill = text + prefill, ""
        ids = self.encode(text, parse_special=True)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids + self.encode(prefill)

    def _prompt_text(self, messages: Messages) -> str:
        if not messages:
            raise BadField("messages is empty; give at least one (role, content) pair")
        if any(role == "raw" for role, _ in messages):
            if len(messages) > 1:
                raise BadField(f'a message of role "raw" must be the only one, got {len(messages)} messages')
            return messages[0][1]
        return self.template.render(messages) if self.template else plain_text(messages)


def gguf_tokenizer(gguf: Gguf, now: datetime | None = None) -> TextTokenizer:
    """The tokenizer in a GGUF file's metadata. now: the day that its chat template sees. Raises BadModelFile, Unsupported."""
    source = str(gguf.path)
    vocab = read_vocabulary(source, gguf.metadata)
    ends = {vocab.ids.get(name) for name in END_NAMES} & vocab.control_ids
    text = gguf.metadata.get("tokenizer.chat_template")
    names = {f"{role}_token": vocab.texts[i] for role, i in vocab.roles.items()}
    return TextTokenizer(
        core=vocab.core,
        pieces=vocab.pieces,
        eos_ids=frozenset(ends | {vocab.roles[role] for role in ("eos", "eot", "eom") if role in vocab.roles}),
        bos_id=vocab.roles.get("bos") if vocab.is_bos_added else None,
        is_space_prefixed=vocab.is_space_prefixed,
        template=compile_template(source, text, names, now or datetime.now()) if isinstance(text, str) else None,
    )


def open_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of the model at `path`: a GGUF file or a Hugging Face folder. Raises BadModelFile, Unsupported."""
    return folder_tokenizer(path) if path.is_dir() else gguf_tokenizer(read_gguf(path))


def open_model(path: Path) -> tuple[FileCheckpoint, TextTokenizer]:
    """Weights and tokenizer of the model at `path`, its file read once. Raises BadModelFile, Unsupported."""
    if path.is_dir():
        return open_checkpoint(path), folder_tokenizer(path)
    gguf = read_gguf(path)
    return gguf_checkpoint(gguf), gguf_tokenizer(gguf)


def folder_tokenizer(folder: Path, now: datetime | None = None) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder with a tokenizer.json, else a tokenizer.model. Raises BadModelFile, Unsupported."""
    path = folder / "tokenizer.json"
    if not path.exists() and (folder / "tokenizer.model").exists():
        return _sentencepiece_tokenizer(folder, now)
    settings = read_json(path)
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadModelFile(f"{path}: cannot be read: {one_line(error)}") from error
    core.no_truncation()
    core.no_padding()
    config, extra = read_json(folder / "config.json"), _read_optional(folder / "tokenizer_config.json")
    pieces = _folder_pieces(path, settings, core, config.get("vocab_size"))
    names = {key: text for key in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := _token_text(extra.get(key)))}
    bos_id = core.token_to_id(names["bos_token"]) if "bos_token" in names else None
    text = _folder_template(folder, extra)
    return TextTokenizer(
        core=core,
        pieces=pieces,
        eos_ids=_folder_ends(folder, core, config, names.get("eos_token")) & set(range(len(pieces))),
        bos_id=bos_id if bos_id is not None and core.encode("").ids[:1] == [bos_id] else None,
        is_space_prefixed=any(pieces[i].startswith(b" ") for i in core.encode("a", add_special_tokens=False).ids[:1]),
        template=None if text is None else compile_template(str(folder), text, names, now or datetime.now()),
    )


def _sentencepiece_tokenizer(folder: Path, now: datetime | None) -> TextTokenizer:
    """Of a folder with a tokenizer.model alone: its pieces, and the tokens that the folder adds to them."""
    path, config, extra = folder / "tokenizer.model", read_json(folder / "config.json"), _read_optional(folder / "tokenizer_config.json")
    metadata = read_sentencepiece(path) | {"general.architecture": config.get("model_type")}
    metadata["tokenizer.ggml.add_bos_token"] = extra.get("add_bos_token", True)
    add_tokens(str(folder), metadata, _added_tokens(folder, extra), config.get("vocab_size"))
    vocab = read_vocabulary(str(path), metadata)
    names = {f"{role}_token": vocab.texts[i] for role, i in vocab.roles.items()}
    names |= {key: text for key in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := _token_text(extra.get(key)))}
    bos_id, eos_id = (vocab.ids.get(names.get(f"{role}_token", "")) for role in ("bos", "eos"))
    text = _folder_template(folder, extra)
    return TextTokenizer(
        core=vocab.core,
        pieces=vocab.pieces,
        eos_ids=_folder_ends(folder, vocab.core, config, names.get("eos_token")) | ({eos_id} - {None}),
        bos_id=bos_id if vocab.is_bos_added else None,
        is_space_prefixed=vocab.is_space_prefixed,
        template=None if text is None else compile_template(str(folder), text, names, now or datetime.now()),
    )


def _added_tokens(folder: Path, extra: Mapping[str, object]) -> list[tuple[object, object, object]]:
    """(text, id, whether it is special) as tokenizer_config.json and added_tokens.json have them."""
    listed = extra.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(isinstance(token, dict) and i.isdecimal() for i, token in listed.items()):
        raise BadModelFile(f"{folder}: added_tokens_decoder of tokenizer_config.json must map ids to tokens")
    found = [(token.get("content"), int(i), token.get("special", False)) for i, token in listed.items()]
    known = {i for _, i, _ in found}
    return found + [(text, i, True) for text, i in _read_optional(folder / "added_tokens.json").items() if i not in known]


def _folder_pieces(path: Path, settings: Mapping[str, object], core: tokenizers.Tokenizer, vocab_size: object) -> tuple[bytes, ...]:
    """Bytes of every id, padded to the model's vocab_size: models have more rows than their tokenizer has tokens."""
    ids = core.get_vocab(with_added_tokens=True)
    if not isinstance(vocab_size, int) or not max(ids.values(), default=-1) < vocab_size <= MAX_VOCAB:
        raise BadModelFile(f"{path}: its largest id is {max(ids.values(), default=-1)}, but the model's vocab_size is {vocab_size}")
    decoder = str(settings.get("decoder"))
    if not any(name in decoder for name in ("ByteLevel", "ByteFallback", "Metaspace")):
        raise Unsupported(f"{path}: decoder {decoder[:60]} is not supported; ByteLevel, ByteFallback and Metaspace are")
    to_bytes = byte_level_bytes if "ByteLevel" in decoder else spaced_bytes
    pieces = [b""] * vocab_size
    for text, i in ids.items():
        pieces[i] = to_bytes(text)
    for i, token in core.get_added_tokens_decoder().items():
        pieces[i] = b"" if token.special else spaced(token.content) if to_bytes is spaced_bytes else token.content.encode()
    return tuple(pieces)


def _folder_ends(folder: Path, core: tokenizers.Tokenizer, config: Mapping[str, object], eos_token: str | None) -> frozenset[int]:
    listed = _read_optional(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    ids = {i for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int)}
    special = {token.content: i for i, token in core.get_added_tokens_decoder().items() if token.special}
    ids |= {special[name] for name in END_NAMES if name in special}
    if eos_token and (eos := core.token_to_id(eos_token)) is not None:
        ids.add(eos)
    return frozenset(ids)


def _folder_template(folder: Path, extra: Mapping[str, object]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadModelFile(f"{path}: cannot be read: {error}") from error
    text = extra.get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((t.get("template") for t in text if isinstance(t, dict) and t.get("name") == "default"), None)
    return text if isinstance(text, str) else None


def _read_optional(path: Path) -> dict[str, object]:
    return read_json(path) if path.exists() else {}


def _token_text(value: object) -> str | None:
    """The name of a token, or None where there is none that could be one (JSON can spell text that has no UTF-8 form)."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and not any("\ud800" <= c <= "\udfff" for c in text) else None
