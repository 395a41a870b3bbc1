"""The form of an answer as a person writes it: json, choice:a,b, regex:PATTERN, schema:FILE or lark:FILE."""

from collections.abc import Callable
from pathlib import Path

from ponder.core.asks import Choice, Form, Grammar, Json, JsonSchema, Regex
from ponder.core.errors import BadField, UnknownName

MAX_BYTES = 1 << 20  # of a schema or a grammar


def read_form(text: str) -> Form:
    """The form. Raises UnknownName for another kind, BadField for one that is empty or a file that cannot be read."""
    kind, _, rest = text.partition(":")
    if kind not in FORMS:
        raise UnknownName("form", kind, FORMS)
    if (kind == "json") != (rest == ""):
        raise BadField(f"form {text!r}: write {FORMS[kind][0]}")
    return FORMS[kind][1](rest)


def options(text: str) -> Form:
    return Choice(tuple(option.strip() for option in text.split(",")))


def file_text(name: str) -> str:
    """Text of a schema or grammar file."""
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise BadField(f"form file {name}: {error.strerror}; name a file that can be read") from error
    if len(data) > MAX_BYTES:
        raise BadField(f"form file {name}: {len(data)} bytes, at most {MAX_BYTES} are read; take a smaller one")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadField(f"form file {name}: byte {error.start} is not UTF-8; save it as UTF-8 text") from error


FORMS: dict[str, tuple[str, Callable[[str], Form]]] = {  # kind -> (how it is written, rest of the text -> form)
    "json": ("json, and nothing behind it", lambda rest: Json()),
    "regex": ("regex:PATTERN, as in regex:[0-9]+", Regex),
    "choice": ("choice:A,B, as in choice:yes,no", options),
    "schema": ("schema:FILE, a file that holds a JSON schema", lambda rest: JsonSchema(file_text(rest))),
    "lark": ("lark:FILE, a file that holds a grammar in Lark's notation", lambda rest: Grammar(file_text(rest))),
}
