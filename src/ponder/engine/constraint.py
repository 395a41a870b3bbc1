r"""Which tokens may come next, so that an answer stays in its form: matchers whose state is a function of the tokens alone.

llguidance finds the tokens, from the vocabulary's bytes (so that byte tokens and halves of characters are right for every
kind of tokenizer): derivatives of regular expressions for words, an Earley parser above them, a walk of the vocabulary's trie.
Chosen over xgrammar 0.2.8, whose masks come as fast (both about 10 us, and 3 us to copy a matcher), for what they do with a
schema that they cannot honour: llguidance refuses `not`, `if`, uniqueItems, unknown formats, allOf of a string and an integer
and the regex [^\s\S]; xgrammar takes all six. And its wheel stands alone (one for all Pythons, no further packages, 50 ms to
import), where xgrammar brings transformers, pydantic and a runtime, and 2 s.

A token is allowed when its bytes lead towards a text of the form, however they split it, so that a form's mass is the sum over
all its splits. End tokens are allowed exactly where the answer is complete, other control tokens never. A grammar without any
finite sentence is not found out: its answers end by their length.

Shapes: R rows, V tokens.
"""

import json
import re
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from ponder.core.asks import Choice, Form, Grammar, Json, JsonSchema, Regex
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer

NUM_STATES = 256  # prefixes whose matcher is kept
NUM_FORMS = 64  # compiled forms that are kept
SPACING = {"whitespace_pattern": r"[ \t\n\r]{0,20}", "json_allow_general_unicode_escapes": True}  # some models would never stop spacing


class Matcher:
    """Where one completion stands in its form, after `tokens`. `push` moves it on; `Forms.matcher` makes one."""

    def __init__(self, forms: "Forms", form: Form, tokens: tuple[int, ...], core: LLMatcher) -> None:
        self.forms, self.form, self.core = forms, form, core
        self.tokens = list(tokens)
        self.is_shared = True  # others derive theirs from this core: copied before it moves
        self.renewed_at: int | None = None  # number of tokens at which it was last derived from nothing
        self.is_stuck = False  # the last mask was empty

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(not self.core.is_error() and self.core.is_accepting())

    @property
    def is_dead(self) -> bool:
        """Whether nothing may follow and the answer may not end: the vocabulary cannot spell the form, or a limit was met."""
        return bool(self.is_stuck or self.core.is_error() or (self.core.is_stopped() and not self.core.is_accepting()))

    def push(self, token: int) -> None:
        """Takes the next token; one that was not allowed makes the matcher dead. An end token changes nothing."""
        if token in self.forms.eos_ids:
            return
        if self.is_shared:
            self.core, self.is_shared = self.core.deep_copy(), False
        self.tokens.append(token)
        self.core.consume_token(self.forms.first[token])
        self.renew()

    def after(self, token: int) -> "Matcher | None":
        """Another one, a token further; None where the token is not allowed. This one stays where it is."""
        core = self.core.deep_copy()
        core.consume_token(self.forms.first[token])
        if core.is_error():
            return None
        found = Matcher(self.forms, self.form, (*self.tokens, token), core)
        found.is_shared = False
        return found

    def renew(self) -> bool:
        """Derives a broken matcher from nothing, once at each place; whether it did.

        Copies share the states of one lexer, which has a limit: what broke it may have been another completion.
        """
        if not self.core.is_error() or self.renewed_at == len(self.tokens):
            return False
        self.forms.forget(self.form)
        self.renewed_at = len(self.tokens)
        self.core, self.is_shared = self.forms.compiled(self.form).deep_copy(), False
        self.core.consume_tokens([self.forms.first[token] for token in self.tokens])
        return True

    def allowed(self) -> Tensor:
        """bool [V]: tokens that may come next."""
        return self.forms.allowed([self])[0]

    def keep(self) -> None:
        """Lets those who go on from here derive theirs from this one."""
        if not self.is_dead:
            self.is_shared = True
            _remember(self.forms.states, (self.form, tuple(self.tokens)), self.core, NUM_STATES)


class Forms:
    """The forms of one tokenizer, compiled once, and the matchers of recent prefixes, from which others are derived."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_ids = tokenizer.eos_ids
        self.ends = sorted(tokenizer.eos_ids)
        self.vocab_size = len(tokenizer.pieces)
        pieces = [b"" if i in self.eos_ids else piece for i, piece in enumerate(tokenizer.pieces)]
        ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
        self.first = [ids[piece] if piece else i for i, piece in enumerate(pieces)]  # of equal pieces llguidance knows one
        self.twins = [i for i, j in enumerate(self.first) if i != j]
        self.originals = [self.first[i] for i in self.twins]
        known = [piece if i == j else b"" for i, (piece, j) in enumerate(zip(pieces, self.first))]
        self.core = LLTokenizer(TokenizerWrapper(_Pieces(known, self.ends[0])), n_vocab=self.vocab_size, eos_token=self.ends)
        self.executor = LLExecutor()
        bits = np.packbits([bool(piece) for piece in known], bitorder="little")
        self.text_bits = np.pad(bits, (0, -len(bits) % 4)).view(np.int32)
        self.starts: OrderedDict[Form, LLMatcher] = OrderedDict()
        self.states: OrderedDict[tuple[Form, tuple[int, ...]], LLMatcher] = OrderedDict()

    def matcher(self, form: Form, tokens: tuple[int, ...]) -> Matcher:
        """The matcher after `tokens`. Raises BadField for a form that cannot be read or fulfilled, or that forbids a token."""
        found = self.states.get((form, tokens))
        if found is None:
            before = self.states.get((form, tokens[:-1]))
            size = 0 if before is None else len(tokens) - 1
            found = (self.compiled(form) if before is None else before).deep_copy()
            num_taken = size + found.try_consume_tokens([self.first[token] for token in tokens[size:]])
            if num_taken < len(tokens) and not found.is_error():
                raise BadField(
                    f"prefix token {tokens[num_taken]} at {num_taken}: form {_shown(form)} does not allow it there; extend a prefix made under it"
                )
        matcher = Matcher(self, form, tokens, _remember(self.states, (form, tokens), found, NUM_STATES))
        matcher.renew()
        if matcher.core.is_error():
            raise BadField(f"form {_shown(form)}: {_first_line(matcher.core.get_error())} after {len(tokens)} tokens; simplify it")
        return matcher

    def allowed(self, matchers: Sequence[Matcher]) -> Tensor:
        """bool [R, V]: tokens that may come next. A row without any belongs to a matcher that is dead by now."""
        cores = list({id(matcher.core): matcher.core for matcher in matchers}.values())  # several may stand at one place
        bits = np.zeros((len(cores), len(self.text_bits)), np.int32)
        self.executor.unsafe_compute_mask_ptr([(core, row) for row, core in enumerate(cores)], bits.ctypes.data, bits.shape[1] * 4, len(cores))
        if any([matcher.renew() for matcher in matchers]):
            return self.allowed(matchers)
        bits &= self.text_bits
        rows = {id(core): row for row, core in enumerate(cores)}
        at = [rows[id(matcher.core)] for matcher in matchers]
        if len(cores) < len(matchers):
            bits = bits[at]
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=self.vocab_size, bitorder="little").view(np.bool_)
        if self.twins:
            allowed[:, self.twins] = allowed[:, self.originals]
        for matcher, row, is_any in zip(matchers, allowed, bits.any(axis=1).tolist()):
            if matcher.core.is_error():
                row[:] = False
            row[self.ends] = matcher.is_complete
            matcher.is_stuck = not is_any and not matcher.is_complete
        return torch.from_numpy(allowed)

    def compiled(self, form: Form) -> LLMatcher:
        """The matcher of `form` before its first token; not to be moved. Raises BadField."""
        if form not in self.starts:
            try:
                core = LLMatcher(self.core, _grammar(form), log_level=0)
            except ValueError as error:  # a lone surrogate, or a number that JSON cannot write
                raise BadField(f"form {_shown(form)}: {error}; mend it") from error
            if core.is_error():
                raise BadField(f"form {_shown(form)}: {_first_line(core.get_error())}; mend it or leave out what is not supported")
            first = Matcher(self, form, (), core)
            first.renewed_at = 0
            if not bool(first.allowed().any()):
                raise BadField(f"form {_shown(form)}: no answer fulfils it, or this model's vocabulary cannot spell one; weaken it")
            self.starts[form] = core
        return _remember(self.starts, form, self.starts[form], NUM_FORMS)

    def forget(self, form: Form) -> None:
        """Drops all that is known of `form`."""
        self.starts.pop(form, None)
        for key in [key for key in self.states if key[0] == form]:
            del self.states[key]


_FORMS: dict[int, Forms] = {}  # by identity: comparing vocabularies would take longer than using them


def forms_of(tokenizer: Tokenizer) -> Forms:
    """The one Forms of `tokenizer`, made at the first call (0.1 s for 49k tokens, 0.35 s for 152k); it goes when the tokenizer goes."""
    key = id(tokenizer)
    if key not in _FORMS:
        _FORMS[key] = Forms(tokenizer)
        weakref.finalize(tokenizer, _FORMS.pop, key, None).atexit = False
    return _FORMS[key]


class _Pieces:
    """A vocabulary as llguidance wants to see it. How it splits a text matters only to tokens that are forced, which nobody asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos_id: int) -> None:
        self.tokens, self.eos_token_id = tokens, eos_id
        self.special_token_ids = [i for i, piece in enumerate(tokens) if not piece]
        self.ids = {piece: i for i, piece in enumerate(tokens) if len(piece) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [self.ids[bytes([byte])] for byte in data if bytes([byte]) in self.ids]


def _grammar(form: Form) -> str:
    """`form` as llguidance reads it. Without no_forcing, text that is certain would be split in one way only, which is not the model's."""
    return LLMatcher.grammar_from_lark(f'{_lark(form)}\n%llguidance {{"no_forcing": true}}\n')


def _lark(form: Form) -> str:
    if isinstance(form, Grammar):
        return form.lark
    if isinstance(form, Regex):
        return str(json.loads(LLMatcher.grammar_from_regex(form.pattern))["grammars"][0]["lark_grammar"])
    if isinstance(form, Choice):
        return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in form.options)
    assert isinstance(form, Json | JsonSchema), form
    schema = _schema(form) if isinstance(form, JsonSchema) else {}
    own = schema.get("x-guidance", {})
    return "start: %json " + json.dumps(schema | {"x-guidance": SPACING | own if isinstance(own, dict) else own})


def _schema(form: JsonSchema) -> dict[str, object]:
    try:
        schema = json.loads(form.schema)
    except (ValueError, RecursionError) as error:
        raise BadField(f"form {_shown(form)}: the schema is no JSON ({error}); give JSON text, as json.dumps writes it") from error
    if schema is False:
        raise BadField(f"form {_shown(form)}: the schema `false` admits no answer; weaken it")
    if schema is not True and not isinstance(schema, dict):
        raise BadField(f'form {_shown(form)}: a JSON schema must be an object or `true`, as in {{"type": "object"}}')
    return {} if schema is True else schema


def _remember(known: OrderedDict[Any, LLMatcher], key: object, core: LLMatcher, most: int) -> LLMatcher:
    known[key] = core
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
    return core


def _shown(form: Form) -> str:
    text = repr(form)
    return text if len(text) <= 200 else text[:197] + "..."


def _first_line(message: str) -> str:
    """An error of llguidance without the lines that quote its source, and without the state of its parser."""
    lines = [line.strip() for line in message.split("<state>")[0].splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    return " ".join(line for line in lines if line)[:400]
