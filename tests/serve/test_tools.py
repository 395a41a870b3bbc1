"""Tool calls by OpenAI's own client: kept where they must come, read where they may, refused by name where they cannot be honoured."""

import json
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace

import openai
import pytest

from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.budget import Budget
from ponder.engine.process import LocalProcess, Settings
from ponder.models.chat_template import ChatTemplate, compile_template
from ponder.serve.menu import Menu
from ponder.serve.tools import Tools, calling, rendered, tools_of
from ponder.serve.wire import ChatRequest, Tool
from serve.toy_server import Lettered, chat, events, post, serving

TEXT = """{% if tools %}Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Say <tool_call>{"name": .., "arguments": ..}</tool_call>.
{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}[assistant]"""
TEMPLATE = compile_template("test", TEXT, {}, datetime(2026, 1, 1))
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}, "hot": {"type": "boolean"}}, "required": ["city", "hot"],
        "additionalProperties": False, "$defs": {"City": {"enum": ["Oslo", "Rome"]}}}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}
BOTH = [WEATHER, {"type": "function", "function": {"name": "moon", "parameters": CITY}}]
NAMED = {"type": "function", "function": {"name": "weather"}}


@dataclass(frozen=True)
class Templated(ByteTokenizer):
    template: ChatTemplate = TEMPLATE


@pytest.fixture(scope="module")
def client():
    process = LocalProcess(tiny_decoder(context_len=2048), Templated(), Sarathi(), Settings(max_rows=16, kv_bytes=1 << 25))
    with serving(process, menu=Menu(model="m", most=Budget(tokens=20_000))) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client, **fields):
    given = {"model": "m", "messages": [{"role": "user", "content": "Warm?"}], "max_tokens": 400, "seed": 3, "tools": BOTH, **fields}
    return client.chat.completions.create(**given)


def is_call(call, names):
    arguments = json.loads(call.function.arguments)
    assert call.type == "function" and call.id and call.function.name in names
    assert arguments["city"] in ("Oslo", "Rome") and arguments["hot"] in (True, False) and len(arguments) == 2


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_must_come_comes_with_arguments_of_its_schema(client, seed):
    choice = ask(client, seed=seed, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None and len(choice.message.tool_calls) == 1
    is_call(choice.message.tool_calls[0], ("weather", "moon"))
    (named,) = ask(client, seed=seed, tool_choice=NAMED).choices[0].message.tool_calls
    is_call(named, ("weather",))


def test_several_calls_have_their_own_ids_and_a_stream_puts_the_same_together(client):
    whole = ask(client, tool_choice="required", n=2, model="m@best_of_n:num=2")
    streamed = {}
    for chunk in ask(client, tool_choice="required", n=2, model="m@best_of_n:num=2", stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                streamed.setdefault(choice.index, []).append((call.index, call.function.name, call.function.arguments))
            assert not choice.delta.content
    for choice in whole.choices:
        calls = choice.message.tool_calls
        assert streamed[choice.index] == [(i, c.function.name, c.function.arguments) for i, c in enumerate(calls)]
        assert len({c.id for c in calls}) == len(calls)


def test_a_conversation_with_calls_goes_on(client):
    reply = ask(client, tool_choice=NAMED).choices[0].message
    call = reply.tool_calls[0]
    messages = [{"role": "user", "content": "Warm?"}, reply.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "21"}]
    after = ask(client, messages=messages, max_tokens=8)
    assert after.choices[0].message.content and after.choices[0].finish_reason == "length"
    text = rendered(ChatRequest.model_validate({"model": "m", "messages": messages}), None, TEMPLATE)
    called = f'{{"name": "weather", "arguments": {call.function.arguments}}}'
    assert text.endswith(f"[assistant]<tool_call>\n{called}\n</tool_call>[tool]21[assistant]")


def test_without_a_need_the_model_says_what_it_says(client):
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tools": [NOW]}):
        choice = ask(client, max_tokens=10, **fields).choices[0]
        assert choice.message.tool_calls is None and choice.message.content is not None


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', None, [("now", {})]),
        ('Let me see. <tool_call>{"name": "now"}</tool_call>', "Let me see.", [("now", {})]),
        ('<tool_call>{"name": "now", "arguments": {"a": {"b": 1}}}', None, [("now", {"a": {"b": 1}})]),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', '<tool_call>{"name": "other", "arguments": {}}</tool_call>', []),
        ("<tool_call>{now}</tool_call>", "<tool_call>{now}</tool_call>", []),
        ('<tool_call>{"name": "now", "arguments": 3}</tool_call>', '<tool_call>{"name": "now", "arguments": 3}</tool_call>', []),
        (' {"name": "now"} ', ' {"name": "now"} ', []),
        (' {"name": "now", "arguments": {"x": 2}}\n', None, [("now", {"x": 2})]),
        ('["arguments"]', '["arguments"]', []),
        ('<tool_call>{"name": "now"}</tool_call> <tool_call>{"name": "now", "arguments": {"x": 2}}</tool_call>', None,
         [("now", {}), ("now", {"x": 2})]),
    ],
)  # fmt: skip
def test_calls_are_read_from_a_text(text, content, calls):
    found, told = Tools(("now",), None, True).read(text, "r")
    assert found == content and [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in told] == calls
    alone = Tools(("now",), None, False).read(text, "r")[1]
    assert alone == told[:1]


CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [NOW], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW], "logprobs": True}, "logprobs"),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "no"}}}], "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "now", "arguments": "[1]"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(client, fields, param):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**body)
    assert refused.value.param == param


def test_a_model_whose_template_knows_no_tools_says_so():
    deaf = compile_template("deaf", "{% for m in messages %}{{ m.content }}{% endfor %}", {}, datetime(2026, 1, 1))
    process = Lettered()
    with serving(process) as (url, _):
        for tokenizer in (process.tokenizer, SimpleNamespace(pieces=process.tokenizer.pieces, template=deaf)):
            process.tokenizer = tokenizer
            for fields, param in (({"tools": [NOW]}, "tools"), ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "a"}]}, "messages")):
                refused = post(url, chat(**fields))
                assert refused.status_code == 400 and refused.json()["error"]["param"] == param
        assert events(post(url, chat(tools=[NOW], tool_choice="none", stream=True)))[-1] == "[DONE]"


def test_the_grammar_names_only_what_may_be_called():
    tools = [Tool.model_validate(t) for t in (WEATHER, NOW)]
    assert '"weather"' in calling(tools, is_parallel=True).lark and '"weather"' not in calling(tools[1:], is_parallel=False).lark
    request = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], "tools": [NOW], "tool_choice": "none"})
    assert tools_of(request) is None
