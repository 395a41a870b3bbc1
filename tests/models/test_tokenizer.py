"""The tokenizer in a GGUF file gives the ids that the model was trained on, and text survives a round trip."""

import itertools
import json
import urllib.request
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from models.corpus import documents
from models.gguf_writer import tiny_llama, write
from ponder.core.errors import BadField, BadModelFile, Unsupported
from ponder.models.fetch import MODELS, model_path
from ponder.models.gguf import read_gguf
from ponder.models.tokenizer import TextTokenizer, gguf_tokenizer, open_tokenizer
from ponder.models.vocabulary import WORDS as KNOWN_WORDS

QWEN = model_path(MODELS["qwen2.5-coder-0.5b"])
needs_qwen = pytest.mark.skipif(not QWEN.is_file(), reason="qwen2.5-coder-0.5b is not in the cache; 491 MB are not pulled for a test")
MISSING = frozenset(map(chr, (4, 6, 19, 20, 22, 29)))  # control characters whose bytes SmolLM2's vocabulary lacks
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
plain = st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters=MISSING))


@cache
def smollm2(path: Path) -> TextTokenizer:
    return open_tokenizer(path)


@pytest.fixture(scope="module", params=["smollm2-135m", pytest.param("qwen2.5-coder-0.5b", marks=[needs_qwen, pytest.mark.slow])])
def real(request: pytest.FixtureRequest, smollm2_path: Path) -> tuple[Path, TextTokenizer]:
    path = smollm2_path if request.param == "smollm2-135m" else QWEN
    return path, open_tokenizer(path)


def transformers_reference(path: Path) -> tokenizers.Tokenizer:
    """The conversion that transformers makes of the same file. It ignores tokenizer.ggml.pre: for Qwen2 it is right by the
    architecture's name, for SmolLM2 (architecture llama) it leaves out that digits stand alone. There the pre-tokenizer
    that HuggingFaceTB publish for SmolLM2, Digits then ByteLevel, is put in; vocabulary and merges stay transformers' own.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    core = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    if "smollm2" in path.name:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    core.encode_special_tokens = True
    return core


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ids_like_transformers(real: tuple[Path, TextTokenizer]):
    path, ours = real
    texts = documents()
    assert sum(len(text.encode()) for text in texts) > 1_000_000
    theirs = transformers_reference(path)
    assert [t for t in texts if ours.encode(t) != theirs.encode(t, add_special_tokens=False).ids] == []
    chat = "".join(piece for text in texts[-20:] for piece in (text, "<|im_start|>", "<|im_end|>\n", "<|endoftext|>"))
    theirs.encode_special_tokens = False
    assert ours.encode(chat, parse_special=True) == theirs.encode(chat, add_special_tokens=False).ids


def test_ids_like_llama_cpp(real: tuple[Path, TextTokenizer]):
    """The other implementation: it knows the pre-tokenizer from the file, as we do."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is the reference")
    path, ours = real
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = str(path), 64, 1, False, 1
    server = xllamacpp.Server(params)

    def theirs(text: str, parse_special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": parse_special}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["tokens"]

    texts = documents(1000)
    assert [t for t in texts if ours.encode(t) != theirs(t, False)] == []
    chat = [f"<|im_start|>user\n{t}<|im_end|>\n<|endoftext|>x" for t in texts[-100:]]
    assert [t for t in chat if ours.encode(t, parse_special=True) != theirs(t, True)] == []


def test_round_trip(real: tuple[Path, TextTokenizer]):
    _, tokenizer = real
    assert [t for t in documents() if tokenizer.decode(tokenizer.encode(t)) != t] == []


@settings(max_examples=500, deadline=None)
@given(text=plain)
def test_round_trip_of_any_text(smollm2_path: Path, text: str):
    tokenizer = smollm2(smollm2_path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.pieces[i] for i in ids) == text.encode()


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_is_too_odd(smollm2_path: Path, text: str):
    """Bytes that the vocabulary lacks are left out; everything else stays, in order."""
    tokenizer = smollm2(smollm2_path)
    known = {piece[0] for piece in tokenizer.pieces if len(piece) == 1}
    ids = tokenizer.encode(text, parse_special=True)
    assert b"".join(tokenizer.pieces[i] for i in ids) == bytes(b for b in text.encode() if b in known)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "a", " 1", "<|im", "_end|>", "\n", "é"])))
def test_control_tokens_only_where_asked_for(smollm2_path: Path, parts: list[str]):
    tokenizer, text = smollm2(smollm2_path), "".join(parts)
    controls = {0, 1, 2}
    assert not controls & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    parsed = tokenizer.encode(text, parse_special=True)
    num = sum(text.count(name) for name in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    assert sum(i in controls for i in parsed) == num


def test_digits_stand_alone_and_the_law_sees_it(smollm2_path: Path):
    """Teeth: the conversion without the digit split, which a peer ships, gives other ids for numbers."""
    ours = smollm2(smollm2_path)
    core = tokenizers.Tokenizer.from_str(ours.core.to_str())
    core.pre_tokenizer = BYTE_LEVEL
    wrong = replace(ours, core=core)
    assert len(ours.encode("1234567")) == 7
    assert wrong.encode("x =  12") != ours.encode("x =  12")
    assert wrong.encode("no  digits here") == ours.encode("no  digits here")


def test_prompt_of_smollm2(smollm2_path: Path):
    tokenizer = smollm2(smollm2_path)
    ids = tokenizer.render((("user", "Hi"),), "Well")
    texts = [tokenizer.core.id_to_token(i) for i in ids]
    assert (texts[0], texts[-4:]) == ("<|im_start|>", ["ass", "istant", "Ċ", "Well"])
    assert b"named SmolLM" in b"".join(tokenizer.pieces[i] for i in ids)
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.render((("system", "Be brief."), ("user", "Hi")))[:3] == tokenizer.encode("<|im_start|>system\n", parse_special=True)
    assert tokenizer.render((("raw", "a<|im_end|>"),), "<|im_end|>") == [*tokenizer.encode("a"), 2, *tokenizer.encode("<|im_end|>")]


TALKS = (
    (("user", "Hi"),),
    (("system", "Be brief."), ("user", " Hi \n"), ("assistant", "Ho"), ("user", "2+2?")),
    (("system", ""), ("user", "<b>é</b> & 你好"), ("assistant", "")),
)


@pytest.mark.parametrize("talk", TALKS)
def test_prompt_like_transformers(real: tuple[Path, TextTokenizer], talk: tuple[tuple[str, str], ...]):
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is the reference")
    path, tokenizer = real
    template = str(read_gguf(path).metadata["tokenizer.chat_template"])
    turns = [{"role": role, "content": content} for role, content in talk]
    text = utils.render_jinja_template(conversations=[turns], chat_template=template, add_generation_prompt=True)[0][0]
    assert tokenizer.render(talk) == tokenizer.encode(text, parse_special=True)


# ---- made vocabularies

TINY_METADATA, TINY_TENSORS = tiny_llama(np.random.default_rng(0))


def made(folder: Path, changes: dict[str, object]) -> TextTokenizer:
    """The tokenizer of a tiny file with other metadata; a value of None takes the key away."""
    metadata = {key: value for key, value in (TINY_METADATA | changes).items() if value is not None}
    return gguf_tokenizer(read_gguf(write(folder / "made.gguf", metadata, {})), now=datetime(2024, 2, 29))


SPM_WORDS = {
    "▁": -9.0, "a": -9.1, "b": -9.2, "c": -9.3, "ab": -2.0, "bc": -1.0, "abc": -3.0, "▁a": -4.0, "▁abc": -5.0, "é": -9.4, "aa": -2.5, "▁▁": -0.5,
    "ca": -2.2, "bca": -2.1, "▁b": -1.5,
}  # fmt: skip


def spm(folder: Path, changes: dict[str, object] | None = None) -> TextTokenizer:
    """A SentencePiece vocabulary: specials, 256 bytes, and words whose scores decide the merges."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *SPM_WORDS]
    types = np.array([2, 3, 3, *[6] * 256, *[1] * len(SPM_WORDS)], dtype=np.int32)
    scores = np.array([0.0] * 259 + list(SPM_WORDS.values()), dtype=np.float32)
    base = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types, "tokenizer.ggml.scores": scores}
    return made(folder, base | {"tokenizer.ggml.merges": None, "tokenizer.ggml.pre": None} | (changes or {}))


def slow_sentencepiece(text: str) -> list[str]:
    """The definition: while two neighbours make a word, join those that make the best one, leftmost first."""
    parts = list("▁" * bool(text) + text.replace(" ", "▁"))
    while pairs := [(-SPM_WORDS[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in SPM_WORDS]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [t for part in parts for t in ([part] if part in SPM_WORDS else [f"<0x{b:02X}>" for b in part.encode()])]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return spm(tmp_path_factory.mktemp("spm"))


@settings(max_examples=500, deadline=None)
@given(text=st.text("aabbcc é你\n"))
def test_sentencepiece_as_defined(sentencepiece: TextTokenizer, text: str):
    assert [sentencepiece.core.id_to_token(i) for i in sentencepiece.encode(text)] == slow_sentencepiece(text)


def test_sentencepiece(sentencepiece: TextTokenizer):
    space_a = sentencepiece.encode("a")
    assert sentencepiece.encode("</s>a", parse_special=True) == [2, *space_a]
    assert 2 not in sentencepiece.encode("</s>a")
    assert sentencepiece.render((("raw", "a"),)) == [1, *space_a]  # bos is added by default
    assert sentencepiece.render((("raw", "a"),), "bc") == [1, *sentencepiece.encode("abc")]


def test_sentencepiece_without_prefix(tmp_path: Path):
    tokenizer = spm(tmp_path, {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert tokenizer.bos_id is None
    assert [tokenizer.pieces[i] for i in tokenizer.encode("abc")] == [b"abc"]
    assert tokenizer.decode(tokenizer.encode(" abc")) == " abc"


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_sentencepiece_round_trip(sentencepiece: TextTokenizer, text: str):
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_user_defined_tokens_are_always_found(tmp_path: Path):
    tokenizer = made(tmp_path, {})
    assert tokenizer.encode("a<tool>b") == [4, 3, 5]
    assert tokenizer.decode([4, 3, 5]) == "a<tool>b"
    assert tokenizer.encode("abc</s>")[0] == 23
    assert 2 not in tokenizer.encode("abc</s>")


@pytest.mark.parametrize("pre", KNOWN_WORDS)
def test_every_pre_tokenizer_keeps_the_text(tmp_path: Path, pre: str):
    """Cuts are a partition of the text, whatever it is; Llama 3 adds bos by default."""
    tokenizer = made(tmp_path, {"tokenizer.ggml.pre": pre})
    for text in documents(20)[-60:]:
        assert "".join(text[start:stop] for start, stop in cuts(tokenizer, text)) == text
    assert (tokenizer.bos_id == 1) == (pre.startswith("llama") or pre == "tekken")


def cuts(tokenizer: TextTokenizer, text: str) -> list[tuple[int, int]]:
    return [span for _, span in tokenizer.core.pre_tokenizer.pre_tokenize_str(text)]


WORDS = {
    "default": ("x1234 foo!!", ["x", "123", "4", " foo", "!!"]),
    "gpt-2": ("x1234  foo!!", ["x", "1234", " ", " foo", "!!"]),
    "smollm": ("x12  foo!!", ["x", "1", "2", " ", " foo", "!!"]),
    "qwen2": ("x12 I'LL\n\n(foo", ["x", "1", "2", " I", "'LL", "\n\n", "(foo"]),
    "llama-bpe": ("x1234 I'LL\n\n(foo", ["x", "123", "4", " I", "'LL", "\n\n", "(foo"]),
    "dbrx": ("x1234 I'LL\n\n(foo", ["x", "123", "4", " I", "'LL", "\n\n", "(foo"]),
    "tekken": ("fooBar12 He'll ÀÉx//\n", ["foo", "Bar", "1", "2", " He", "'ll", " ÀÉx", "//\n"]),
    "gpt-4o": ("fooBar1234 He'll ÀÉx//\n", ["foo", "Bar", "123", "4", " He'll", " ÀÉx", "//\n"]),
    "olmo": ("x1234  foo!!", ["x", "1234", " ", " foo", "!!"]),
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_of_pre_tokenizers(tmp_path: Path, pre: str):
    text, words = WORDS[pre]
    assert [text[a:b] for a, b in cuts(made(tmp_path, {"tokenizer.ggml.pre": pre}), text)] == words


# ---- templates


def test_no_template_gives_plain_text(tmp_path: Path):
    tokenizer = made(tmp_path, {"tokenizer.chat_template": None})
    assert tokenizer.template is None
    assert tokenizer.render((("user", "a"),)) == tokenizer.encode("User: a\n\nAssistant:")


TEMPLATES = {
    "{{ bos_token }}{{ eos_token }}": [1, 2],
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m['content'] }}\n    {% endif %}\n{% endfor %}": [4],
    "{% generation %}b{% endgeneration %}": [5],
    "{% for m in messages %}a{% break %}b{% endfor %}": [4],
    "{{ strftime_now('%d') }}b": [5],
    "{% if tools is none and add_generation_prompt %}a{% endif %}": [4],
}


@pytest.mark.parametrize("text", TEMPLATES)
def test_template_features(tmp_path: Path, text: str):
    tokenizer = made(tmp_path, {"tokenizer.chat_template": text})
    assert tokenizer.render((("user", "a"),)) == TEMPLATES[text]


def test_template_texts(tmp_path: Path):
    """JSON is not escaped for HTML, and the day is that of loading."""
    template = made(tmp_path, {"tokenizer.chat_template": "{{ messages[0] | tojson }}{{ strftime_now('%d %b %Y') }}"}).template
    assert template.render((("user", "<é>"),)) == '{"role": "user", "content": "<é>"}29 Feb 2024'


BAD_TEMPLATES = {
    "{% for m in messages %}": (BadModelFile, "does not parse"),
    "{{ messages.nothing.at.all }}": (BadModelFile, "the chat template fails: UndefinedError"),
    "{{ 1 // 0 }}": (BadModelFile, "ZeroDivisionError"),
    "{{ ''.__class__.__mro__ }}": (BadModelFile, "SecurityError"),
    "{{ messages.append(1) }}": (BadModelFile, "SecurityError"),
    "{{ raise_exception('roles\nmust alternate') }}": (BadField, "refuses these messages: roles must alternate"),
    "{{ 'a' * 1000000000000 }}": (BadModelFile, "too large"),
    "{{ 10 ** 9999999999 }}": (BadModelFile, "too large"),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": (BadModelFile, "RecursionError"),
}


@pytest.mark.parametrize("text", BAD_TEMPLATES)
def test_bad_templates_give_one_line(tmp_path: Path, text: str):
    kind, message = BAD_TEMPLATES[text]
    with pytest.raises(kind, match=message) as caught:
        made(tmp_path, {"tokenizer.chat_template": text}).render((("user", "a"),))
    assert "\n" not in str(caught.value)


# ---- mistakes

BAD_METADATA = {
    "tokenizer model 'bert'": {"tokenizer.ggml.model": "bert"},
    "tokenizer model None": {"tokenizer.ggml.model": None},
    "pre-tokenizer 'viking'": {"tokenizer.ggml.pre": "viking"},
    "tokens must be a list": {"tokenizer.ggml.tokens": "abc"},
    "one integer for each of 24": {"tokenizer.ggml.token_type": np.ones(3, dtype=np.int32)},
    "merges must be a list": {"tokenizer.ggml.merges": None},
    "one space between": {"tokenizer.ggml.merges": ["a b c"]},
    "does not fit together": {"tokenizer.ggml.merges": ["x zz"]},
    "eos_token_id is 24": {"tokenizer.ggml.eos_token_id": 24},
    "scores must hold": {"tokenizer.ggml.model": "llama"},
    "2000 characters": {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": np.zeros(24, dtype=np.float32),
        "tokenizer.ggml.tokens": [*TINY_METADATA["tokenizer.ggml.tokens"][:-1], "x" * 2000],
    },
}


@pytest.mark.parametrize("message", BAD_METADATA)
def test_bad_vocabularies_are_named(tmp_path: Path, message: str):
    with pytest.raises(BadModelFile, match=message):
        made(tmp_path, BAD_METADATA[message])


def test_unsupported_is_its_own_kind(tmp_path: Path):
    with pytest.raises(Unsupported, match="supported are default, gpt-2, olmo, smollm"):
        made(tmp_path, {"tokenizer.ggml.pre": "viking"})


def test_mistakes_of_the_caller(tmp_path: Path):
    tokenizer = made(tmp_path, {})
    with pytest.raises(BadField, match="lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(BadField, match="token id 24"):
        tokenizer.decode([24])
    with pytest.raises(BadField, match="token id -1"):
        tokenizer.decode([-1])
    with pytest.raises(BadField, match="messages is empty"):
        tokenizer.render(())
    with pytest.raises(BadField, match="must be the only one"):
        tokenizer.render((("raw", "a"), ("user", "b")))
