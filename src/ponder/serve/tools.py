"""Tool calls: tools and calls in the words of the model's own chat template, a grammar where a call must come, calls read from an answer.

Models that say <tool_call>{"name": .., "arguments": ..}</tool_call> (Qwen, Hermes and those after them) are understood.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ponder.core.asks import Form, Grammar
from ponder.core.errors import PonderError
from ponder.serve.errors import Refusal, bad
from ponder.serve.wire import ChatRequest, Message, NamedTool, Tool

BEGIN, END = "<tool_call>", "</tool_call>"
CALL = re.compile(rf"{BEGIN}\s*(\{{.*?\}})\s*(?:{END}|$)", re.DOTALL)
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as templates write calls
PROBE = {"type": "function", "function": {"name": "probe_of_tools", "description": "", "parameters": {"type": "object", "properties": {}}}}


class Template(Protocol):
    """A chat template that is told of tools (models.chat_template). Raises PonderError where it fails."""

    def render_turns(self, turns: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None) -> str: ...


@dataclass(frozen=True)
class Tools:
    """What a model may call. form: of an answer that must be a call."""

    names: tuple[str, ...]
    form: Form | None
    is_parallel: bool

    def read(self, text: str, run: str) -> tuple[str | None, list[dict[str, object]]]:
        """(content, calls) of an answer. What is no call of a known tool stays in the content; None where nothing does."""
        calls: list[dict[str, object]] = []

        def taken(match: re.Match[str]) -> str:
            found = self._call(match[1])
            if found is None or (calls and not self.is_parallel):
                return match[0] if found is None else ""
            calls.append({"id": f"call_{run}_{len(calls)}", "type": "function", "function": found})
            return ""

        bare = self._call(text) if '"arguments"' in text else None  # small models leave the tags out
        if bare is not None:
            calls.append({"id": f"call_{run}_0", "type": "function", "function": bare})
            return None, calls
        content = CALL.sub(taken, text)
        return (content.strip() or None) if calls else content, calls

    def _call(self, text: str) -> dict[str, str] | None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        arguments = found.get("arguments", {})
        if found.get("name") not in self.names or not isinstance(arguments, dict):
            return None
        return {"name": found["name"], "arguments": json.dumps(arguments)}


def tools_of(request: ChatRequest) -> Tools | None:
    """What may be called in the answer; None for nothing. Raises Refusal."""
    if not request.tools:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(request, name) not in (None, "none", "auto", True):
                raise bad(name, f"{name} without tools: give tools, or leave it out")
        return None
    names = tuple(tool.function.name for tool in request.tools)
    if len(set(names)) < len(names):
        raise bad("tools", f"tools: {max(names, key=names.count)!a} is there twice; name each function once")
    choice = request.tool_choice or "auto"
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise bad("tool_choice", f"tool_choice names {choice.function.name!a}, which is not among the tools: {', '.join(names)}")
    if choice == "none":
        return None
    _refuse_beside(request)
    if choice == "auto":
        strict = next((i for i, tool in enumerate(request.tools) if tool.function.strict), None)
        if strict is not None:
            param = f"tools[{strict}].function.strict"
            raise bad(param, f"{param}: a schema is kept where a call must come (tool_choice 'required' or a function); leave it out, or set that")
    wanted = [tool for tool in request.tools if not isinstance(choice, NamedTool) or tool.function.name == choice.function.name]
    is_parallel = request.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    return Tools(names, None if choice == "auto" else calling(wanted, is_parallel=is_parallel), is_parallel)


def _refuse_beside(request: ChatRequest) -> None:
    if request.logprobs:
        raise bad("logprobs", "logprobs: they are not told where tools may be called; leave out one of the two")
    if request.response_format is not None and request.response_format.type != "text":
        raise bad("response_format", "response_format: an answer in a form calls no tool; leave out one of the two")


def calling(tools: Sequence[Tool], *, is_parallel: bool) -> Grammar:
    """The answers that are calls of `tools`, with arguments that their schemas admit."""
    lines = [f"start: call{' (' + json.dumps(chr(10)) + ' call)*' if is_parallel else ''}"]
    bodies = " | ".join(f"f{i}" for i in range(len(tools)))
    lines.append(f"call: {json.dumps(BEGIN + chr(10))} ({bodies}) {json.dumps(chr(10) + END)}")
    for i, tool in enumerate(tools):
        arguments = dict(tool.function.parameters or {"type": "object"})
        shared: dict[str, object] = {
            key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments
        }  # which $ref looks for at the top
        schema: dict[str, object] = {
            "x-guidance": SPACING, "type": "object", "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
            "required": ["name", "arguments"], "additionalProperties": False, **shared,
        }  # fmt: skip
        lines.append(f"f{i}: %json {json.dumps(schema)}")
    return Grammar("\n".join(lines) + "\n")


def is_about_tools(request: ChatRequest, tools: Tools | None) -> bool:
    """Whether the conversation holds more than texts."""
    return tools is not None or any(message.role == "tool" or message.tool_calls for message in request.messages)


def rendered(request: ChatRequest, tools: Tools | None, template: Template | None) -> str:
    """The prompt's text. Raises Refusal where the model's template knows no tools."""
    param = "tools" if tools is not None else "messages"
    if template is None or not _takes_tools(template):
        reason = "this model's chat template takes no tools (or tells of calls in a way that is not read here)"
        raise bad(param, f"{param}: {reason}; describe the tools in a message and ask for a form by response_format")
    turns = [_turn(i, message) for i, message in enumerate(request.messages)]
    listed = None if tools is None else [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    try:
        return template.render_turns(turns, listed)
    except PonderError as error:
        raise bad(param, f"{param}: {error}") from error


def _takes_tools(template: Template) -> bool:
    try:
        text = template.render_turns([{"role": "user", "content": "a"}], [PROBE])
    except PonderError:
        return False
    return "probe_of_tools" in text and BEGIN in text


def _turn(index: int, message: Message) -> dict[str, object]:
    turn: dict[str, object] = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments, index, at)}}
            for at, call in calls
        ]
    return turn


def _arguments(text: str, index: int, at: int) -> dict[str, object]:
    param = f"messages[{index}].tool_calls[{at}].function.arguments"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad(param, f"{param}: no JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise Refusal(400, f"{param}: must be a JSON object, as a call's arguments are", param=param)
    return found
