"""The chat template of a model file: a Jinja program, run in a sandbox, that turns messages into the text of a prompt."""

import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import datetime

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ponder.core.errors import BadField, BadModelFile

Messages = tuple[tuple[str, str], ...]

MAX_SIZE = 1 << 20  # characters, items or bits that one product or power may make


class _Refused(jinja2.TemplateError):
    """The template called raise_exception: it does not take these messages."""


class _GenerationBlock(Extension):
    """{% generation %} marks the assistant's part for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Also refuses products and powers that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        size = _repeated(left, right) if operator == "*" else _power_bits(left, right)
        if size > MAX_SIZE:
            raise SecurityError(f"{operator} would make something too large")
        return super().call_binop(context, operator, left, right)


def _repeated(left: object, right: object) -> int:
    """Length of a repeated text or list; 0 where neither is one."""
    lengths, counts = [len(x) for x in (left, right) if isinstance(x, Sized)], [x for x in (left, right) if isinstance(x, int)]
    return lengths[0] * counts[0] if lengths and counts else 0


def _power_bits(base: object, exponent: object) -> int:
    return base.bit_length() * exponent if isinstance(base, int) and isinstance(exponent, int) else 0


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the values it may read (bos_token, eos_token ..)."""

    source: str  # file name, for messages
    compiled: jinja2.Template
    values: Mapping[str, object]

    def render(self, messages: Messages) -> str:
        """Text up to where the assistant's reply begins. Raises BadField when the template refuses, BadModelFile when it fails."""
        return self.render_turns([{"role": role, "content": content} for role, content in messages], None)

    def render_turns(self, turns: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None) -> str:
        """As `render`, of messages and tools as OpenAI's API has them, but with the arguments of calls as objects."""
        try:
            return self.compiled.render(messages=turns, add_generation_prompt=True, tools=tools, documents=None, **self.values)
        except _Refused as error:
            raise BadField(f"the chat template refuses these messages: {one_line(error)}") from error
        except Exception as error:  # foreign code: it may raise anything
            raise BadModelFile(f"{self.source}: the chat template fails: {type(error).__name__}: {one_line(error)}") from error


def compile_template(source: str, text: str, values: Mapping[str, object], now: datetime) -> ChatTemplate:
    """A template ready to render. `now` is what its strftime_now tells, so that rendering is pure. Raises BadModelFile."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = now.strftime
    try:
        return ChatTemplate(source, environment.from_string(text), values)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise BadModelFile(f"{source}: the chat template does not parse: {one_line(error)}") from error


def plain_text(messages: Messages) -> str:
    """What stands in for a template where the file has none: blocks "System: ..", "User: ..", and "Assistant:" at the end."""
    return "\n\n".join([f"{role.capitalize()}: {content}" for role, content in messages] + ["Assistant:"])


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refuse(message: object) -> None:
    raise _Refused(str(message))


def _tojson(
    value: object, *, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Unlike Jinja's own, without HTML escapes: models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
