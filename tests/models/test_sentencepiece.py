"""SentencePiece vocabularies, trained here: GGUF's scores and tokenizer.json's merges give the ids that the definition and llama.cpp give."""

import itertools
import json
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from models.corpus import SENTENCES, documents
from models.gguf_writer import f32, write
from models.llama_cpp import rewritten, serve
from models.tiny_families import save_gguf
from ponder.models.gguf import read_gguf
from ponder.models.tokenizer import TextTokenizer, gguf_tokenizer, open_tokenizer

SPACE = "\u2581"
SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
RUNS = [SPACE * n for n in range(2, 9)] + ["\n", "\n\n", "<table>"]  # whole tokens of Gemma, found before anything is merged
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@dataclass(frozen=True)
class Vocabulary:
    """texts by id, with GGUF's types and scores, and the merges that the scores stand for, best first."""

    texts: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]


@cache
def trained(runs: tuple[str, ...] = ()) -> Vocabulary:
    """Specials, user-defined `runs`, 256 bytes, 500 merges in the order of training, then characters, as Llama 2 lays them out."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=900, limit_alphabet=300, show_progress=False)
    core.train_from_iterator([*SENTENCES, "the cat sat on the mat because it was the mat " * 20, "aaaa bbbb abab " * 9], trainer)
    merges = [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    merged = [a + b for a, b in merges if a + b not in runs]
    alphabet = sorted({c for c, _ in core.get_vocab().items() if len(c) == 1 and c not in runs})
    merged = list(dict.fromkeys(merged))
    texts = [*SPECIALS, *runs, *(f"<0x{b:02X}>" for b in range(256)), *merged, *alphabet]
    types = [UNKNOWN, *[CONTROL] * (len(SPECIALS) - 1), *[USER_DEFINED] * len(runs), *[BYTE] * 256, *[NORMAL] * (len(merged) + len(alphabet))]
    scores = [0.0] * (len(SPECIALS) + len(runs) + 256) + [-float(i) for i in range(len(merged) + len(alphabet))]
    return Vocabulary(texts, types, scores, merges)


def metadata_of(vocab: Vocabulary, *, is_prefixed: bool) -> dict[str, object]:
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": vocab.texts,
        "tokenizer.ggml.token_type": np.array(vocab.types, dtype=np.int32), "tokenizer.ggml.scores": np.array(vocab.scores, dtype=np.float32),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": is_prefixed,
    }  # fmt: skip


def from_gguf(folder: Path, vocab: Vocabulary, *, is_prefixed: bool, **changes: object) -> TextTokenizer:
    return gguf_tokenizer(read_gguf(write(folder / "m.gguf", metadata_of(vocab, is_prefixed=is_prefixed) | changes, {})))


def from_folder(folder: Path, vocab: Vocabulary, *, is_prefixed: bool) -> TextTokenizer:
    """A tokenizer.json as transformers writes it for Llama 2 (prefixed) or Gemma."""
    ids = {text: i for i, text in enumerate(vocab.texts)}
    merges = [(a, b) for a, b in all_merges(vocab)]
    core = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if is_prefixed else spaces
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if is_prefixed else parts)
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
    core.add_tokens([AddedToken(t, normalized=False) for t, kind in zip(vocab.texts, vocab.types, strict=True) if kind == USER_DEFINED])
    core.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(vocab.texts), "eos_token_id": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return open_tokenizer(folder)


def all_merges(vocab: Vocabulary) -> list[tuple[str, str]]:
    """What the published conversion derives from scores: for every token all its cuts into two tokens, in the order of ids."""
    ids = {t: i for i, t in enumerate(vocab.texts) if vocab.types[i] in (NORMAL, USER_DEFINED)}
    order = sorted(ids, key=lambda t: (-vocab.scores[ids[t]], ids[t]))
    return [(t[:cut], t[cut:]) for t in order for cut in range(1, len(t)) if t[:cut] in ids and t[cut:] in ids]


def defined(vocab: Vocabulary, text: str, *, is_prefixed: bool) -> list[int]:
    """The definition, as slow as it is: join the neighbours that make the best token, leftmost first; then bytes for what is no token."""
    ids = {t: i for i, t in enumerate(vocab.texts) if vocab.types[i] in (NORMAL, USER_DEFINED)}
    parts = list((SPACE if is_prefixed and text else "") + text.replace(" ", SPACE))
    while True:
        pairs = [(-vocab.scores[ids[a + b]], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    first_byte = vocab.texts.index("<0x00>")
    return [i for part in parts for i in ([ids[part]] if part in ids else [first_byte + b for b in part.encode()])]


KINDS = {"llama": ((), True), "gemma": (tuple(RUNS), False)}
TEXTS = [
    "", " ", "  ", "   a", "a", " a", "a ", "the cat sat on the mat", " the  cat   sat", "\n", "a\nb", "\n\n  x\n", "\t", "aaaa", "aaab", "abab",
    "é", "e\u0301", "你好，世界", "😀👩‍👩‍👧‍👦", "\u2581", "x\u2581y", "\x00\x01\x7f", "\u00a0", "\U0010ffff", "ﬁ", "Ünïcödé", "1234567", "</s", "<s>",
    "<|user|>", "<|user|>\nhi<|end|>", "<table> <table>", "\u0300", "a\u200db", "\r\n", "ภาษาไทย", "ק׳",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def both(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, TextTokenizer]:
    runs, is_prefixed = KINDS[kind]
    folder = tmp_path_factory.mktemp(kind)
    return tuple(make(folder, trained(runs), is_prefixed=is_prefixed) for make in (from_gguf, from_folder))


def cut(text: str) -> str:
    return text[:400]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_as_defined(tmp_path_factory: pytest.TempPathFactory, text: str):
    tokenizer = from_gguf(tmp_path_factory.mktemp("m"), trained(), is_prefixed=True)
    assert tokenizer.encode(text) == defined(trained(), text, is_prefixed=True)


def test_gguf_and_folder_give_the_same_ids(both: tuple[TextTokenizer, TextTokenizer]):
    gguf, folder = both
    texts = [*TEXTS, *map(cut, documents(300))]
    assert [t for t in texts if gguf.encode(t) != folder.encode(t)] == []
    assert [t for t in texts if gguf.encode(t, parse_special=True) != folder.encode(t, parse_special=True)] == []
    assert gguf.pieces == folder.pieces
    assert (gguf.bos_id, gguf.eos_ids, gguf.is_space_prefixed) == (folder.bos_id, folder.eos_ids, folder.is_space_prefixed)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE)))
def test_text_survives(text: str):
    for runs, is_prefixed in KINDS.values():
        tokenizer = cached_gguf(runs, is_prefixed)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        bare = text.replace("<s>", "")
        assert not {1, 2} & set(tokenizer.encode(bare))


@cache
def cached_gguf(runs: tuple[str, ...], is_prefixed: bool) -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return from_gguf(Path(folder), trained(runs), is_prefixed=is_prefixed)


def test_ids_like_llama_cpp(kind: str, tmp_path: Path):
    """The same file, special tokens parsed and not."""
    runs, is_prefixed = KINDS[kind]
    vocab = trained(runs)
    rows = f32(np.random.default_rng(0).normal(size=(len(vocab.texts), 32)))  # a row for each token
    whole = rewritten(
        save_gguf("llama2", tmp_path / "m.gguf"), tmp_path / "whole.gguf", metadata_of(vocab, is_prefixed=is_prefixed),
        {"token_embd.weight": rows, "output.weight": rows},
    )  # fmt: skip
    ours = open_tokenizer(whole)
    with serve(whole) as server:
        texts = [t for t in (*TEXTS, *map(cut, documents(200)[-250:])) if "\x00" not in t]
        assert [t for t in texts if ours.encode(t) != server.encode(t)] == []
        chat = [f"<s><|user|>{t}<|end|>\n" for t in texts]
        assert [t for t in chat if ours.encode(t, parse_special=True) != server.encode(t, parse_special=True)] == []


def test_special_tokens_of_phi3_swallow_white_space(tmp_path: Path):
    """As its tokenizer_config.json asks: all but <unk>, <s> and <|endoftext|>. Elsewhere white space stays."""
    changes = {"general.architecture": "phi3", "general.name": "Phi-3 mini"}
    phi, llama = (from_gguf(tmp_path, trained(), is_prefixed=False, **extra) for extra in (changes, {}))
    hi, user, end = phi.encode("hi"), 3, 4
    assert phi.encode("<|user|>\n hi<|end|>\n<|user|>", parse_special=True) == [user, *hi, end, user]
    assert phi.encode("<s>\nhi", parse_special=True) == [1, *phi.encode("\nhi")]
    assert llama.encode("<|user|>\nhi", parse_special=True) == [user, *llama.encode("\nhi")]
    assert phi.encode("<|user|>\n hi") == llama.encode("<|user|>\n hi")


def test_wrong_scores_are_seen(tmp_path: Path):
    """Teeth: the order of merges, and the space before the text, change ids."""
    vocab = trained()
    texts = ["the cat sat on the mat", "aaaa bbbb abab"]
    flipped = replace(vocab, scores=[-s for s in vocab.scores])
    right, wrong, bare = (from_gguf(tmp_path, v, is_prefixed=is_prefixed) for v, is_prefixed in ((vocab, True), (flipped, True), (vocab, False)))
    assert any(right.encode(t) != wrong.encode(t) for t in texts)
    assert all(right.encode(t) != bare.encode(t) for t in texts)


# ---- Unigram, as some folders have it


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False, initial_alphabet=sorted(set("".join(SENTENCES)))
    )
    core.train_from_iterator(SENTENCES, trainer)
    folder = tmp_path_factory.mktemp("unigram")
    core.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": core.get_vocab_size(), "eos_token_id": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return open_tokenizer(folder)


def test_unigram_folder(unigram: TextTokenizer):
    """The library's own best segmentation, and pieces that spell the text with the space that comes before it."""
    known = [t for t in ("Größere Straßen", "a b", *SENTENCES) if 0 not in unigram.encode(t) and "\n" not in t]
    assert len(known) > 10
    for text in known:
        ids = unigram.encode(text)
        assert b"".join(unigram.pieces[i] for i in ids).decode() == " " + text
        assert unigram.decode(ids) == text
    assert unigram.is_space_prefixed
    assert unigram.eos_ids == {2, unigram.core.token_to_id("<|end|>")}
