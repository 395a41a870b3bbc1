r"""Which tokens may come next, so that an answer stays in its form: matchers whose state is a function of the tokens alone.

llguidance finds the tokens, from the vocabulary's bytes (so that byte tokens and halves of characters are right for every
kind of tokenizer): derivatives of regular expressions for words, an Earley parser above them, a walk of the vocabulary's trie.
Chosen over xgrammar 0.2.8, whose masks come as fast (both about 10 us, and 3 us to copy a matcher), for what they do with a
schema that they cannot honour: llguidance refuses `not`, `if`, uniqueItems, unknown formats, allOf of a string and an integer
and the regex [^\s\S]; xgrammar takes all six. And its wheel stands alone (one for all Pythons, no further packages, 50 ms to
import), where xgrammar brings transformers, pydantic and a runtime, and 2 s.

End tokens are allowed exactly where the answer is complete, other control tokens never. Nothing here knows of probabilities.
A grammar without any finite sentence is not found out: its answers end by their length.

Shapes: R rows, V tokens.
"""

import json
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
SPACE = r"[ \t\n\r]{0,20}"  # between parts of a JSON value; without a bound some models never stop spacing


class Matcher:
    """Where one completion stands in its form, after `tokens`. `push` moves it on; `Forms.matcher` makes one."""

    def __init__(self, forms: "Forms", form: Form, tokens: tuple[int, ...], core: LLMatcher) -> None:
        self.forms, self.form, self.core = forms, form, core
        self.tokens = list(tokens)
        self.is_shared = True  # others derive theirs from this core: copied before it moves
        self.renewed_at: int | None = None  # number of tokens at which it was last derived from nothing

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(not self.core.is_error() and self.core.is_accepting())

    @property
    def is_dead(self) -> bool:
        """Whether nothing may follow and the answer may not end: the vocabulary cannot spell the form, or a limit was met."""
        return bool(self.core.is_error() or (self.core.is_stopped() and not self.core.is_accepting()))

    def push(self, token: int) -> None:
        """Takes the next token; one that was not allowed makes the matcher dead. An end token changes nothing."""
        if token in self.forms.eos_ids:
            return
        if self.is_shared:
            self.core, self.is_shared = self.core.deep_copy(), False
        self.tokens.append(token)
        self.core.consume_token(token)
        self.renew()

    def renew(self) -> bool:
        """Derives a broken matcher from nothing, once at each place; whether it did.

        Copies share the states of one lexer, which has a limit: what broke it may have been another completion.
        """
        if not self.core.is_error() or self.renewed_at == len(self.tokens):
            return False
        self.forms.forget(self.form)
        self.renewed_at = len(self.tokens)
        self.core, self.is_shared = self.forms.compiled(self.form).deep_copy(), False
        self.core.consume_tokens(self.tokens)
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
        self.core = LLTokenizer(TokenizerWrapper(_Pieces(tokenizer)), n_vocab=self.vocab_size, eos_token=self.ends)
        self.executor = LLExecutor()
        self.text_bits = np.packbits([bool(piece) and i not in self.eos_ids for i, piece in enumerate(tokenizer.pieces)], bitorder="little")
        self.starts: OrderedDict[Form, LLMatcher] = OrderedDict()
        self.states: OrderedDict[tuple[Form, tuple[int, ...]], LLMatcher] = OrderedDict()

    def matcher(self, form: Form, tokens: tuple[int, ...]) -> Matcher:
        """The matcher after `tokens`. Raises BadField for a form that cannot be read or fulfilled, or that forbids a token."""
        found = self.states.get((form, tokens))
        if found is None:
            before = self.states.get((form, tokens[:-1]))
            size = 0 if before is None else len(tokens) - 1
            found = (self.compiled(form) if before is None else before).deep_copy()
            num_taken = size + found.try_consume_tokens(list(tokens[size:]))
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
        bits = np.zeros((len(cores), -(-self.vocab_size // 32)), np.int32)
        self.executor.unsafe_compute_mask_ptr([(core, row) for row, core in enumerate(cores)], bits.ctypes.data, bits.shape[1] * 4, len(cores))
        if any([matcher.renew() for matcher in matchers]):
            return self.allowed(matchers)
        text = bits.view(np.uint8)[:, : len(self.text_bits)] & self.text_bits
        allowed = np.unpackbits(text, axis=1, count=self.vocab_size, bitorder="little").view(np.bool_)
        rows = {id(core): row for row, core in enumerate(cores)}
        at = [rows[id(matcher.core)] for matcher in matchers]
        for matcher, row in zip(matchers, at):
            allowed[row, self.ends] = matcher.is_complete
            allowed[row] &= not matcher.core.is_error()
        return torch.from_numpy(allowed)[at]

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


_FORMS: dict[int, tuple["weakref.ref[Tokenizer]", Forms]] = {}  # by identity: comparing vocabularies would take longer than using them


def forms_of(tokenizer: Tokenizer) -> Forms:
    """The one Forms of `tokenizer`, made at the first call (0.1 to 0.4 s); it goes when the tokenizer goes."""
    known = _FORMS.get(id(tokenizer))
    if known is None or known[0]() is not tokenizer:
        key = id(tokenizer)
        known = (weakref.ref(tokenizer, lambda _: _FORMS.pop(key, None) and None), Forms(tokenizer))
        _FORMS[key] = known
    return known[1]


class _Pieces:
    """A tokenizer as llguidance wants to see it. Its own ids of a text only matter where tokens are forced, which is not used."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.tokens = [b"" if i in tokenizer.eos_ids else piece for i, piece in enumerate(tokenizer.pieces)]
        self.special_token_ids = [i for i, piece in enumerate(self.tokens) if not piece]
        self.encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self.encode(text if isinstance(text, str) else text.decode(errors="replace"))


def _grammar(form: Form) -> str:
    """`form` as llguidance reads it."""
    if isinstance(form, Regex):
        return LLMatcher.grammar_from_regex(form.pattern)
    if isinstance(form, Grammar):
        return LLMatcher.grammar_from_lark(form.lark)
    if isinstance(form, Choice):
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in form.options))
    assert isinstance(form, Json | JsonSchema), form
    schema = _schema(form) if isinstance(form, JsonSchema) else {}
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": SPACE})


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
    """An error of llguidance without the state of its parser."""
    lines = [line.strip() for line in message.split("<state>")[0].splitlines()]
    return " ".join(line for line in lines if line)[:400]
