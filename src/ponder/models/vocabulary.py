"""The vocabulary in a GGUF file's metadata, as a `tokenizers` model.

Two kinds: "gpt2" is byte-level BPE, where tokenizer.ggml.pre names how text is cut into words first; "llama" is
SentencePiece BPE, where scores give the order of merges and unknown characters become byte tokens. Nothing is
normalised, so that text survives a round trip (the same choice as llama.cpp's).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ponder.core.errors import BadModelFile, Unsupported
from ponder.models.chat_template import one_line

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
MAX_VOCAB = 1 << 24
MAX_TOKEN_LEN = 1024  # characters of a SentencePiece token; bounds the search for its merges

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"  # words are cut where a capital follows a small letter
SUFFIX, REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{REST}"
GPT4O = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}|\p{{N}}{{1,3}}|{REST}"
# tokenizer.ggml.pre -> patterns that cut the text one after the other; what lies between matches is a word too
WORDS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (GPT2,),
    "olmo": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "refact": (r"\p{N}", GPT2),
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "dbrx": (LLAMA3,),  # OLMo2, Phi-4
    "smaug-bpe": (LLAMA3,),  # SmolLM3
    "tekken": (TEKKEN,),  # Mistral Nemo
    "gpt-4o": (GPT4O,),  # Phi-4-mini
}
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "tekken")  # take whole words from the vocabulary first, and add bos
PLAIN_SPECIALS = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3; its other special tokens swallow the white space after them


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about tokens. roles: "bos", "eos" .. -> id."""

    core: tokenizers.Tokenizer
    texts: list[str]
    ids: dict[str, int]
    pieces: tuple[bytes, ...]
    control_ids: frozenset[int]
    roles: dict[str, int]
    is_bos_added: bool
    is_space_prefixed: bool


def read_vocabulary(source: str, metadata: Mapping[str, object]) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises BadModelFile, or Unsupported naming the tokenizer model or pre-tokenizer."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model not in ("gpt2", "llama"):
        raise Unsupported(f"{source}: tokenizer model {model!r} is not supported; supported are gpt2 and llama")
    if model == "gpt2" and pre not in WORDS:
        raise Unsupported(f"{source}: pre-tokenizer {pre!r} is not supported; supported are {', '.join(WORDS)}")
    texts, types = _tokens(source, metadata)
    ids = {text: i for i, text in reversed(list(enumerate(texts)))}  # the first of equal texts
    is_spm = model == "llama"
    usable = {text: i for text, i in ids.items() if types[i] != UNUSED}
    try:
        core = _sentencepiece(source, metadata, usable, types) if is_spm else _byte_level(source, metadata, usable, str(pre))
        is_phi3 = is_spm and metadata.get("general.architecture") == "phi3"
        special = [i for i in np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))) if texts[i]]
        core.add_tokens([_added(texts[i], types[i], is_greedy=is_phi3 and texts[i] not in PLAIN_SPECIALS) for i in special])
    except (BadModelFile, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception
        raise BadModelFile(f"{source}: the vocabulary does not fit together: {one_line(error)}") from error
    return Vocabulary(
        core=core,
        texts=texts,
        ids=ids,
        pieces=tuple(_piece(text, kind, is_spm) for text, kind in zip(texts, types.tolist(), strict=True)),
        control_ids=frozenset(np.flatnonzero(types == CONTROL).tolist()),
        roles=_roles(source, metadata, len(texts)),
        is_bos_added=metadata.get("tokenizer.ggml.add_bos_token", is_spm or pre in LLAMA3_NAMES) is True,
        is_space_prefixed=is_spm and _is_prefixed(metadata),
    )


def add_tokens(source: str, metadata: dict[str, object], added: Iterable[tuple[object, object, object]], vocab_size: object) -> None:
    """Puts (text, id, whether it is a control token) into the lists of `metadata`, padded to the model's vocab_size. Raises BadModelFile."""
    texts, types = _tokens(source, metadata)
    if not isinstance(vocab_size, int) or not len(texts) <= vocab_size <= MAX_VOCAB:
        raise BadModelFile(f"{source}: {len(texts)} tokens, but the model's vocab_size is {vocab_size}")
    missing = vocab_size - len(texts)
    texts = texts + [""] * missing
    types = np.concatenate([types, np.full(missing, UNUSED, types.dtype)])
    for text, i, is_control in added:
        if not isinstance(text, str) or not isinstance(i, int) or not 0 <= i < vocab_size:
            raise BadModelFile(f"{source}: added token {text!r} has id {i}; ids are 0 to {vocab_size - 1}")
        texts[i] = text
        types[i] = CONTROL if is_control else USER_DEFINED
    scores = np.concatenate([np.asarray(metadata["tokenizer.ggml.scores"]), np.zeros(missing, np.float32)])
    metadata |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types, "tokenizer.ggml.scores": scores}


def byte_level_bytes(text: str) -> bytes:
    """Bytes that a byte-level token stands for; text outside the byte alphabet stands for itself."""
    try:
        return bytes([BYTE_OF[c] for c in text])
    except KeyError:
        return text.encode()


def spaced_bytes(text: str) -> bytes:
    """Bytes that a SentencePiece token stands for: <0x0A> is a byte, U+2581 a space."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return spaced(text)


def spaced(text: str) -> bytes:
    return text.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level alphabet: printable bytes stand for themselves, others for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def _tokens(source: str, metadata: Mapping[str, object]) -> tuple[list[str], np.ndarray]:
    texts = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise BadModelFile(f"{source}: tokenizer.ggml.tokens must be a list of strings")
    types = metadata.get("tokenizer.ggml.token_type", np.full(len(texts), NORMAL, dtype=np.int32))
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(texts):
        raise BadModelFile(f"{source}: tokenizer.ggml.token_type must hold one integer for each of {len(texts)} tokens")
    return texts, types


def _byte_level(source: str, metadata: Mapping[str, object], ids: dict[str, int], pre: str) -> tokenizers.Tokenizer:
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise BadModelFile(f"{source}: tokenizer.ggml.merges must be a list of strings")
    pairs = [tuple(merge.split(" ")) for merge in merges if isinstance(merge, str)]
    if len(pairs) != len(merges) or any(len(pair) != 2 for pair in pairs):
        raise BadModelFile(f"{source}: tokenizer.ggml.merges must hold pairs with one space between")
    core = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=pre in LLAMA3_NAMES))
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in WORDS[pre]]
    core.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(source: str, metadata: Mapping[str, object], ids: dict[str, int], types: np.ndarray) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu" or len(scores) != len(types):
        raise BadModelFile(f"{source}: tokenizer.ggml.scores must hold one number for each of {len(types)} tokens")
    longest = max(map(len, ids))
    if longest > MAX_TOKEN_LEN:
        raise Unsupported(f"{source}: a token of {longest} characters; at most {MAX_TOKEN_LEN} are supported")
    mergeable = {text: i for text, i in ids.items() if types[i] in (NORMAL, USER_DEFINED)}
    unknown = next((text for text, i in ids.items() if types[i] == UNKNOWN), None)
    merges = _merges(mergeable, scores)
    core = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if _is_prefixed(metadata) else spaces
    return core


def _is_prefixed(metadata: Mapping[str, object]) -> bool:
    return metadata.get("tokenizer.ggml.add_space_prefix", True) is True


def _merges(ids: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to make a token of two, best token first; equal scores in order of ids."""
    merges = []
    for text in sorted(ids, key=lambda t: (-float(scores[ids[t]]), ids[t])):
        merges += [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids]
    return merges


def _added(text: str, kind: int, *, is_greedy: bool) -> AddedToken:
    """A token that is found in the text before words are cut; control tokens only where the caller asks for them.

    is_greedy: it takes the white space after it along.
    """
    return AddedToken(text, normalized=False, special=kind != USER_DEFINED, rstrip=is_greedy)


def _piece(text: str, kind: int, is_spm: bool) -> bytes:
    if kind in (UNKNOWN, CONTROL, UNUSED):
        return b""
    if kind == USER_DEFINED:
        return spaced(text) if is_spm else text.encode()
    return spaced_bytes(text) if is_spm else byte_level_bytes(text)


def _roles(source: str, metadata: Mapping[str, object], num: int) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
    roles = {}
    for role, key in keys.items():
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None or value == 0xFFFFFFFF:  # absent, or the file's way to say none
            continue
        if not isinstance(value, int) or not 0 <= value < num:
            raise BadModelFile(f"{source}: tokenizer.ggml.{key}_token_id is {value}; ids are 0 to {num - 1}")
        roles[role] = value
    return roles
