"""Masks against the languages they stand for, matchers as functions of their tokens, and a small engine that keeps to them."""

import gc
import itertools
import json
import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tiny_models import END, VOCAB, ByteTokenizer, tiny_decoder, tiny_process
from ponder.core.asks import GREEDY, Choice, Expand, Extend, Form, Grammar, Json, JsonSchema, Prefix, Prompt, Regex, Sampling, Score
from ponder.core.errors import BadField
from ponder.engine import constraint
from ponder.engine.constraint import Forms, Matcher, forms_of
from ponder.testing import laws_process
from ponder.testing.exact import require
from ponder.testing.run import answer_turn


@dataclass(frozen=True)
class Pieces:
    """A tokenizer of given pieces; the last two ids are control tokens, the first of which ends."""

    pieces: tuple[bytes, ...]

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({len(self.pieces) - 2})

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return [self.pieces.index(bytes([b])) for b in text.encode()]


BYTES = tuple(bytes([b]) for b in range(256))
WORDS = (b"a", b"ab", b"b", b"\n", b'"', b"\\", b"\xc3\xa9", b"\xe2\x82", b"\xacx", b"a\xf0\x9f", b" a", b"yes", b"no")
SPM = Pieces((b"", *BYTES, *WORDS, b"", b""))  # byte tokens beside pieces, some of equal bytes; a control token comes first
SPM_FORMS = Forms(SPM)
TEXT = st.text(st.sampled_from(["a", "b", '"', "\\", "\n", "é", "€", "😀", " ", "|", "/", "\x00", "n", "{", "<"]), max_size=4)


def allowed_ids(matcher: Matcher) -> set[int]:
    return set(matcher.allowed().nonzero()[:, 0].tolist())


def bytewise(tokenizer: Pieces, options: tuple[str, ...], tokens: list[int]) -> set[int]:
    """Tokens on the way to an option, tried one by one."""
    done = b"".join(tokenizer.pieces[t] for t in tokens)
    wanted = [option.encode() for option in options]
    found = {t for t, piece in enumerate(tokenizer.pieces) if piece and any(w.startswith(done + piece) for w in wanted)}
    return found | (set(tokenizer.eos_ids) if done in wanted else set())


def textwise(tokenizer: Pieces, options: tuple[str, ...], tokens: list[int]) -> set[int]:
    """What decoding each candidate's text would allow: nothing that ends in half a character."""
    done = b"".join(tokenizer.pieces[t] for t in tokens)
    return {t for t in bytewise(tokenizer, options, tokens) if not (done + tokenizer.pieces[t]).decode(errors="replace").endswith("\ufffd")}


def require_masks(options: tuple[str, ...], picks: list[int], oracle=bytewise, form: Form | None = None, forms: Forms = SPM_FORMS) -> None:
    """Along a walk whose turns `picks` decide, the allowed tokens are the oracle's."""
    matcher, tokens = forms.matcher(form or Choice(options), ()), []
    for pick in [*picks, 0]:
        found, wanted = allowed_ids(matcher), oracle(SPM, options, tokens)
        require(found == wanted, f"after {tokens}: {found ^ wanted} are allowed by one side alone")
        going_on = sorted(found - SPM.eos_ids)
        if not going_on:
            return
        tokens.append(going_on[pick % len(going_on)])
        matcher.push(tokens[-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4, unique=True).filter(any), st.lists(st.integers(0, 30), max_size=8))
def test_masks_are_those_of_the_bytes(options, picks):
    require_masks(tuple(options), picks)


def test_decoding_candidates_one_by_one_is_caught():
    require_masks(("é", "a€"), [0, 0])
    with pytest.raises(AssertionError):
        require_masks(("é", "a€"), [0, 0], textwise)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (Regex("a{1,2}b?"), ("a", "aa", "ab", "aab")),
        (Regex("^(yes|no)$"), ("yes", "no")),
        (Regex("[é€]a"), ("éa", "€a")),
        (Grammar('start: "a" x?\nx: "b" | "bb"'), ("a", "ab", "abb")),
        (JsonSchema('{"enum": ["a", "é"]}'), ('"a"', '"é"')),
        (JsonSchema('{"type": "boolean"}'), ("true", "false")),
    ],
)
@pytest.mark.parametrize("picks", [[0] * 8, [1, 0, 1], [2, 2, 0, 1], [5, 3, 1]])
def test_equal_languages_have_equal_masks(form, options, picks):
    require_masks(options, picks, form=form)


JSON_TEXTS = ('{"a": [1, 2.5e-3, {"b": null}], "é😀": "\\u00e9\\n"}', "[]", '"x"', "-0.5", "true", '{ "a" :\n 1 }')


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_json_is_json(text):
    forms = forms_of(ByteTokenizer())
    assert forms.matcher(Json(), tuple(text.encode())).is_complete
    for bad in (text + "}", " " + text, text.replace("true", "True") + ","):
        with pytest.raises(BadField, match="does not allow"):
            forms.matcher(Json(), tuple(bad.encode()))
    assert not forms.matcher(Json(), tuple(text[:1].encode())).is_complete or len(text) == 1


def test_white_space_ends_some_day():
    with pytest.raises(BadField, match="token 32 at 21"):
        forms_of(ByteTokenizer()).matcher(Json(), tuple(("[" + " " * 30).encode()))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 12))
def test_a_matcher_is_a_function_of_its_tokens(picks, cut):
    """Moved on token by token, derived from the start, from a kept prefix, from a copy: one state. The sources do not move."""
    form = Grammar('start: (word " ")* word\nword: /[ab]+/ | "(" start ")"')
    warm = SPM_FORMS.matcher(form, ())
    tokens: list[int] = []
    for i, pick in enumerate(picks):
        if i == cut:
            warm.keep()
            source, before, warm = warm, allowed_ids(warm), SPM_FORMS.matcher(form, tuple(tokens))
        choices = sorted(allowed_ids(warm) - SPM.eos_ids)
        if not choices:
            break
        tokens.append(choices[pick % len(choices)])
        warm.push(tokens[-1])
    if cut < len(picks) and len(tokens) > cut:
        assert allowed_ids(source) == before
    cold = Forms(SPM).matcher(form, tuple(tokens))
    assert allowed_ids(cold) == allowed_ids(warm) and cold.is_complete == warm.is_complete
    together = SPM_FORMS.allowed([warm, SPM_FORMS.matcher(Regex("[0-9]+"), ()), warm, SPM_FORMS.matcher(form, tuple(tokens))])
    assert torch.equal(together[0], together[2]) and torch.equal(together[0], together[3])
    assert set(together[0].nonzero()[:, 0].tolist()) == allowed_ids(cold)


GREEDY_REGEX = Regex(r"((.|\n)*[a-e](.|\n){14}){1,50}")  # its automaton outgrows the lexer's limit within a few tokens


def test_a_limit_that_one_completion_meets_is_not_the_next_ones():
    text = b"for many rows at once, with everything that they share"
    forms = Forms(ByteTokenizer())

    def num_steps(text: bytes) -> int:
        matcher = forms.matcher(GREEDY_REGEX, ())
        for i, token in enumerate(text):
            if matcher.is_dead or not matcher.allowed()[token]:
                return i
            matcher.push(token)
        return len(text)

    harmless = b"zzz zz zzzz z zz zzzz zz zz z"
    alone = (num_steps(harmless), num_steps(text))
    assert alone[0] == len(harmless)
    assert (num_steps(harmless), num_steps(text), num_steps(harmless)) == (*alone, alone[0])


def test_kept_states_are_few():
    forms = Forms(ByteTokenizer())
    for i in range(2 * constraint.NUM_STATES):
        forms.matcher(Regex("[a-z]*"), (97 + i // 676, 97 + i // 26 % 26, 97 + i % 26))
    for i in range(2 * constraint.NUM_FORMS):
        forms.matcher(Regex(f"a{{{i}}}b"), ())
    assert len(forms.states) <= constraint.NUM_STATES and len(forms.starts) <= constraint.NUM_FORMS


def test_forms_go_with_their_tokenizer():
    tokenizer = Pieces((*BYTES, b"", b""))
    key = id(tokenizer)
    assert forms_of(tokenizer) is forms_of(tokenizer) and key in constraint._FORMS
    del tokenizer
    gc.collect()
    assert key not in constraint._FORMS


REFUSED = [
    (Regex("(a"), "unclosed group"), (Regex("a(?=b)"), "look-ahead"), (Regex(r"(a)\1"), "backreference"), (Regex(r"[^\s\S]"), "no answer fulfils it"),
    (Regex("\ud800"), "surrogate"), (JsonSchema("{"), "no JSON"), (JsonSchema("[]"), "must be an object"), (JsonSchema("false"), "admits no answer"),
    (JsonSchema('{"type": "strin"}'), "strin"), (JsonSchema('{"not": {}}'), "not"), (JsonSchema('{"uniqueItems": true}'), "uniqueItems"),
    (JsonSchema('{"type": "integer", "minimum": 5, "maximum": 3}'), "Unsatisfiable"), (JsonSchema('{"type": "string", "format": "zip"}'), "zip"),
    (JsonSchema('{"$ref": "#/nowhere"}'), "nowhere"), (JsonSchema("[" * 100_000), "no JSON"), (Grammar("start: foo"), "foo"),
    (Grammar("begin: /a/"), "start"), (Grammar(""), "start"), (Choice(("\ud800",)), "surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "reason"), REFUSED, ids=lambda x: repr(x)[:40])
def test_what_cannot_be_honoured_is_refused(form, reason):
    with pytest.raises(BadField, match=f"form .*(?i:{reason})") as found:
        forms_of(ByteTokenizer()).matcher(form, ())
    message = str(found.value)
    assert len(message) < 900 and "\n" not in message and re.search("mend it|weaken it|give JSON|must be", message)


def test_a_vocabulary_that_cannot_spell_the_form():
    forms = Forms(Pieces((b"a", b"b", b"\xc3", b"", b"")))
    with pytest.raises(BadField, match="cannot spell"):
        forms.matcher(Choice(("xyz",)), ())
    matcher = forms.matcher(Regex("é|ab"), ())
    matcher.push(2)
    assert not matcher.allowed().any()


# the engine


DECODER = tiny_decoder()
WARM = tiny_process(DECODER)
PROMPT = Prompt(messages=(("user", "Say something."),), max_tokens=14)
SENTENCE = Regex("[a-z]{2,5}( [a-z]{1,4}){0,6}[.!]")
FORMS = {
    "sentence": SENTENCE,
    "choice": Choice(("yes", "yes, sir", "no", "né")),
    "schema": JsonSchema('{"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}'),
}


@pytest.mark.parametrize("law", [law for law in laws_process.LAWS if law is not laws_process.law_probabilities], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", (lambda: tiny_process(DECODER, chunk=20), lambda: WARM), ids=("fresh", "warm"))
def test_process_laws_in_a_form(law, make):
    law(make, replace(PROMPT, form=SENTENCE), 0.0)


def extends(prompt: Prompt) -> list[Extend]:
    kinds = (Sampling(), Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=2.0, presence_penalty=1.0), GREEDY)
    return [Extend(prefix=Prefix(prompt), seed=seed, sampling=sampling) for seed, sampling in enumerate(kinds * 2)]


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_in_the_form(name):
    told = answer_turn(extends(replace(PROMPT, form=FORMS[name], max_tokens=60)), WARM)
    for answer in told:
        text = answer.prefix.text
        matcher = forms_of(WARM.tokenizer).matcher(FORMS[name], tuple(t for t in answer.prefix.tokens if t != END))
        assert answer.finish == ("stop" if answer.prefix.tokens[-1] == END else "length")
        assert matcher.is_complete or answer.finish == "length"
        if answer.finish == "stop" and name == "schema":
            assert set(json.loads(text)) == {"n", "ok"}
        if answer.finish == "stop" and name == "sentence":
            assert re.fullmatch(SENTENCE.pattern, text)
        if name == "choice":
            assert answer.finish == "stop" and text in FORMS[name].options
    assert any(answer.finish == "stop" for answer in told)
    assert len({answer.prefix.tokens for answer in told}) > 1


def test_neighbours_with_and_without_a_form():
    """Answers beside others of every kind are those of asks alone, bit for bit, in one step or in pieces."""
    asks = [ask for form in (None, *FORMS.values()) for ask in extends(replace(PROMPT, form=form))[1:6:2]]
    others = [Expand(prefix=Prefix(replace(PROMPT, form=SENTENCE)), num=4), Score(prefix=Prefix(PROMPT), options=("yes", "no"))]
    alone = [answer_turn([ask], tiny_process(DECODER))[0].prefix for ask in asks]
    crowd = answer_turn([*asks, *others], tiny_process(DECODER, chunk=30, max_rows=7))
    assert [a.prefix for a in crowd[: len(asks)]] == alone
    halves = answer_turn([replace(ask, max_tokens=2) for ask in asks], WARM)
    rest = [(replace(ask, prefix=half.prefix), whole) for ask, half, whole in zip(asks, halves, alone) if not half.prefix.is_final]
    assert len(rest) > 6
    assert [a.prefix for a in answer_turn([ask for ask, _ in rest], WARM)] == [whole for _, whole in rest]


def test_weights_are_the_models_own_over_the_proposals():
    """log_q is the model's distribution over the allowed tokens, normalised again; log_p is untouched."""
    ask = Extend(prefix=Prefix(replace(PROMPT, form=SENTENCE)), seed=7)
    (answer,) = answer_turn([ask], WARM)
    log_p = log_q = 0.0
    for i, token in enumerate(answer.prefix.tokens):
        plain = Prefix(PROMPT, answer.prefix.tokens[:i])
        (told,) = answer_turn([Extend(prefix=plain, seed=0, max_tokens=1, logprobs=VOCAB)], WARM)
        exact = dict(told.logprobs[0].top)
        allowed = allowed_ids(forms_of(WARM.tokenizer).matcher(SENTENCE, answer.prefix.tokens[:i]))
        assert token in allowed
        log_p += exact[token]
        log_q += exact[token] - math.log(math.fsum(math.exp(exact[t]) for t in allowed))
    assert answer.prefix.log_p == pytest.approx(log_p, abs=1e-5)
    assert answer.prefix.log_q == pytest.approx(log_q, abs=1e-5)
    assert log_q > log_p + 1


def test_children_are_the_likeliest_that_the_form_allows():
    prefix = Prefix(replace(PROMPT, form=SENTENCE), tuple(b"so"), "so")
    asks = [Expand(prefix=Prefix(PROMPT, tuple(b"so"), "so"), num=VOCAB), Expand(prefix=prefix, num=500), Expand(prefix=prefix, num=3)]
    plain, formed, beside = answer_turn(asks, WARM)
    wanted = [c for c in plain.children if chr(c.tokens[-1]) in "abcdefghijklmnopqrstuvwxyz .!"]
    assert [c.tokens for c in formed.children] == [c.tokens for c in wanted]
    assert [c.log_p for c in formed.children] == [c.log_p for c in wanted]
    assert beside.children == formed.children[:3]
    (end,) = answer_turn([Expand(prefix=replace(prefix, tokens=tuple(b"so."), text="so."), num=3)], WARM)
    assert [(c.tokens[-1], c.finish, c.text) for c in end.children] == [(END, "stop", "so.")]


def test_an_answer_that_cannot_go_on_ends_by_its_length():
    """Half a character that the vocabulary cannot finish: no wrong answer, no harm to the neighbours."""

    @dataclass(frozen=True)
    class Lacking(ByteTokenizer):
        pieces: tuple[bytes, ...] = tuple(b"" if piece == b"\xa9" else piece for piece in ByteTokenizer().pieces)

    process = tiny_process(DECODER)
    process.tokenizer = Lacking()
    dead, fine = answer_turn([Extend(prefix=Prefix(replace(PROMPT, form=form)), seed=0) for form in (Regex("éa"), Regex("ab"))], process)
    assert (dead.finish, dead.prefix.tokens) == ("length", (0xC3,))
    assert (fine.finish, fine.prefix.text) == ("stop", "ab")
    with pytest.raises(BadField, match="no token may follow"):
        process.add(Expand(prefix=Prefix(replace(PROMPT, form=Regex("éa")), (0xC3,)), num=2))


def test_a_refusal_disturbs_no_other():
    process = tiny_process(DECODER)
    good = Extend(prefix=Prefix(replace(PROMPT, form=SENTENCE)), seed=1)
    (alone,) = answer_turn([good], tiny_process(DECODER))
    ticket = process.add(good)
    formed = replace(PROMPT, form=SENTENCE)
    for ask, reason in (
        (replace(good, prefix=Prefix(replace(PROMPT, form=Regex("(")))), "unclosed"),
        (replace(good, prefix=Prefix(formed, tuple(b"so9"))), "token 57 at 2"),
        (Expand(prefix=Prefix(formed, tuple(b"9")), num=2), "token 57 at 0"),
        (replace(good, sampling=Sampling(logit_bias=((VOCAB, 1.0),))), f"token {VOCAB}"),
    ):
        with pytest.raises(BadField, match=reason):
            process.add(ask)
    assert set(process.progress()) == {ticket}
    assert laws_process.finished(process, ticket).prefix == alone.prefix


def test_log_probabilities_of_tokens():
    for form, num in itertools.product((None, SENTENCE), (0, 4)):
        ask = Extend(prefix=Prefix(replace(PROMPT, form=form)), seed=2, sampling=Sampling(temperature=0.5), logprobs=num)
        told, plain = answer_turn([ask, replace(ask, logprobs=None)], WARM)
        assert told.prefix == plain.prefix and plain.logprobs == ()
        assert [t.token for t in told.logprobs] == list(told.prefix.tokens)
        assert math.fsum(t.log_p for t in told.logprobs) == pytest.approx(told.prefix.log_p, abs=1e-9)
        for t in told.logprobs:
            assert len(t.top) == num and list(t.top) == sorted(t.top, key=lambda pair: -pair[1])
            assert all(t.log_p <= x for _, x in t.top) or t.token in dict(t.top)
            assert dict(t.top).get(t.token, t.log_p) == t.log_p
        half = answer_turn([replace(ask, max_tokens=3)], WARM)[0]
        assert half.logprobs == told.logprobs[:3]


def test_a_bias_forces_and_forbids_without_touching_log_p():
    loved, hated = ord("q"), END
    sampling = Sampling(logit_bias=((loved, 100.0), (hated, -100.0)))
    (answer,) = answer_turn([Extend(prefix=Prefix(PROMPT), seed=0, sampling=sampling)], WARM)
    assert answer.prefix.text == "q" * PROMPT.max_tokens and answer.prefix.log_q == pytest.approx(0, abs=1e-6) and answer.prefix.log_p < -10
    (scored,) = answer_turn([Score(prefix=Prefix(PROMPT), options=(answer.prefix.text,))], WARM)
    assert scored.log_p[0] == pytest.approx(answer.prefix.log_p, abs=1e-4)
