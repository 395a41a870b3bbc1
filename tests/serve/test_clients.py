"""OpenAI's own Python client, unmodified, against the server: whole replies, streams, errors, every strategy."""

import sys
from pathlib import Path

import httpx
import openai
import pytest

from ponder import catalogue
from ponder.run.spec import FilesToo
from ponder.serve.menu import Menu
from serve.toy_server import Lettered, serving


@pytest.fixture(scope="module")
def server():
    with serving() as (url, app):
        yield url, app


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(timeout=30) as http, openai.OpenAI(base_url=server[0] + "/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def ask(client, text="a", **fields):
    settings = {"model": "toy", "max_tokens": 12, "seed": 1} | fields
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **settings)


def test_a_reply_has_all_that_clients_read(client):
    reply = ask(client, n=2, logprobs=True, top_logprobs=2)
    assert reply.object == "chat.completion" and reply.model == "toy" and [c.index for c in reply.choices] == [0, 1]
    first = reply.choices[0]
    assert first.message.role == "assistant" and first.finish_reason in ("stop", "length")
    assert "".join(t.token for t in first.logprobs.content) == first.message.content
    assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in first.logprobs.content)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].model_extra["ponder"]["stop_reason"] == "done"


def test_the_same_seed_gives_the_same_choices_and_the_first_is_that_of_one(client):
    texts = lambda **fields: [c.message.content for c in ask(client, **fields).choices]
    assert texts(n=3) == texts(n=3) and texts(n=3)[:1] == texts() and len(set(texts(n=8))) > 1
    assert ask(client, seed=None).model_extra["ponder"]["seed"] != ask(client, seed=None).model_extra["ponder"]["seed"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "toy@greedy"},
        {"model": "toy@best_of_n:num=3"},
        {"model": "toy@sample:num=4", "seed": 5},
        {"n": 3},
        {"stop": ["a1", "b"]},
        {"logprobs": True},
    ],
)
def test_a_stream_put_together_is_the_whole_reply(client, fields):
    whole = ask(client, **fields)
    texts, rows, ends = [""] * len(whole.choices), [[] for _ in whole.choices], {}
    usage = None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **fields):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            rows[choice.index] += choice.logprobs.content if choice.logprobs else []
            ends[choice.index] = choice.finish_reason
    assert texts == [c.message.content for c in whole.choices]
    assert [ends[i] for i in range(len(texts))] == [c.finish_reason for c in whole.choices]
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    if fields.get("logprobs"):
        assert [r.logprob for r in rows[0]] == [r.logprob for r in whole.choices[0].logprobs.content]


@pytest.mark.parametrize("strategy", catalogue.STRATEGIES)
def test_every_strategy_over_http(client, strategy):
    reply = ask(client, "ab", model=f"toy@{strategy}", extra_body={"ponder": {"budget": "4000 tokens", "answer": "short"}}, max_tokens=8)
    told = reply.model_extra["ponder"]
    assert told["strategy"] == strategy and told["budget"].startswith("4000 tokens")
    own = reply.choices[0].model_extra["ponder"]
    assert own["stop_reason"] in ("done", "tokens") and own["candidates"][0]["text"] == reply.choices[0].message.content
    assert reply.usage.model_extra["ponder"]["generator_tokens"] <= 4000
    streamed = "".join(
        c.choices[0].delta.content or ""
        for c in ask(
            client, "ab", model=f"toy@{strategy}", stream=True, extra_body={"ponder": {"budget": "4000 tokens", "answer": "short"}}, max_tokens=8
        )
    )
    assert streamed == reply.choices[0].message.content


def test_models_are_listed_with_every_strategy(client):
    names = [model.id for model in client.models.list()]
    assert names == ["toy", *(f"toy@{name}" for name in catalogue.STRATEGIES)]
    assert client.models.retrieve("toy@greedy").model_extra["ponder"]["strategy"] == "greedy"


def test_text_completions(client):
    reply = client.completions.create(model="toy", prompt=["ab", "b"], n=2, max_tokens=6, seed=3, logprobs=1)
    assert [c.index for c in reply.choices] == [0, 1, 2, 3] and reply.object == "text_completion"
    assert all("".join(c.logprobs.tokens) == c.text for c in reply.choices)
    chunks = client.completions.create(model="toy", prompt=["ab", "b"], n=2, max_tokens=6, seed=3, stream=True)
    texts = [""] * 4
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in reply.choices]


def test_settings_of_sampling_reach_the_draws(client):
    greedy = ask(client, model="toy@greedy").choices[0].message.content
    assert ask(client, temperature=0).choices[0].message.content == greedy
    assert ask(client, top_p=1e-6).choices[0].message.content == greedy
    assert set(ask(client, logit_bias={"0": 100}).choices[0].message.content) == {"a"}
    assert ask(client, temperature=0, frequency_penalty=2).choices[0].message.content != greedy
    assert ask(client, model="toy@greedy", temperature=0).choices[0].message.content == greedy


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": "toy@no_such"}, 400, "model"),
        ({"model": "toy@best_of_n:num=99999999"}, 400, "model"),
        ({"model": "toy@beam", "temperature": 0.5}, 400, "temperature"),
        ({"model": "toy@beam", "logprobs": True}, 400, "logprobs"),
        ({"model": "toy@sample:temperature=0.5", "temperature": 0.7}, 400, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"n": 0}, 400, "n"),
        ({"n": 65}, 400, "n"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"stop": [""]}, 400, "stop[0]"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 400, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),  # a toy process knows no JSON
        ({"extra_body": {"ponder": {"budget": "2 tokens"}}}, 400, "ponder.budget"),
        ({"extra_body": {"ponder": {"budget": "1e99 tokens"}}}, 400, "ponder.budget"),
        ({"extra_body": {"ponder": {"strategy": "best_of_n:verifier=/etc/head.safetensors"}}}, 400, "ponder.strategy"),
        ({"extra_body": {"ponder": {"strategy": "best_of_n:verifier=public_tests"}}}, 400, "ponder.strategy"),
        ({"extra_body": {"ponder": {"strategy": "best_of_n:verifier=program_agreement"}}}, 400, "ponder.strategy"),
        ({"extra_body": {"ponder": {"strategy": "best_of_n:verifier=generated_tests"}}}, 400, "ponder.strategy"),
        ({"extra_body": {"ponder": {"answer": "psychic"}}}, 400, "ponder.answer"),
        ({"extra_body": {"ponder": {"stream": "live"}}}, 400, "ponder.stream"),
        ({"extra_body": {"frequency": 2}}, 400, "frequency"),
        ({"extra_headers": {"X-Ponder-Strategy": "nothing"}}, 400, "X-Ponder-Strategy"),
        ({"extra_headers": {"X-Ponder-Budget": "soon"}}, 400, "X-Ponder-Budget"),
    ],
)
def test_what_is_not_honoured_is_refused_and_named(client, fields, status, param):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **fields)
    error = caught.value
    assert error.status_code == status and error.body["param"] == param and error.body["message"], error.body
    if param != "ponder.stream":
        with pytest.raises(openai.APIStatusError) as caught:
            list(ask(client, stream=True, **fields))
        assert caught.value.status_code == status


def test_headers_name_strategy_and_budget(client):
    reply = ask(client, extra_headers={"X-Ponder-Strategy": "self_consistency:num=3", "X-Ponder-Budget": "500 tokens"})
    assert reply.model_extra["ponder"]["strategy"] == "self_consistency:num=3" and "500 tokens" in reply.model_extra["ponder"]["budget"]
    assert 0 <= reply.choices[0].model_extra["ponder"]["confidence"] <= 1


def test_code_runs_only_where_the_operator_said_so():
    """Whatever verifier names the sandbox in its source is refused, strategies' defaults included; and no part of a spec is a file."""
    written = {name: Path(sys.modules[type(v).__module__].__file__).read_text() for name, v in catalogue.VERIFIERS.items()}
    running = {name for name, text in written.items() if "sandbox" in text}
    assert {"public_tests", "program_agreement", "generated_tests"} <= running
    assert set(catalogue.VERIFIERS) - set(Menu(model="m").specs.parts["verifier"]) == running
    assert set(Menu(model="m", allow_code=True).specs.parts["verifier"]) == set(catalogue.VERIFIERS)
    assert not any(isinstance(table, FilesToo) for table in Menu(model="m", allow_code=True).specs.parts.values())
    for strategy in catalogue.STRATEGIES.values():
        assert not {getattr(v, "name", None) for v in vars(strategy).values()} & running


def test_usage_is_what_the_engine_computed():
    process = Lettered()
    with serving(process) as (url, _), httpx.Client(timeout=30) as http:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, http_client=http)
        before = 0
        for i, fields in enumerate(({}, {"model": "toy@best_of_n:num=3,verifier=p_true"}, {"n": 4}, {"model": "toy@step_beam"})):
            usage = ask(client, "ab" * (i + 1) + "x", **fields).usage
            own, after = usage.model_extra["ponder"], process.total.tokens
            assert own["computed_tokens"] == after - before
            assert usage.prompt_tokens + usage.completion_tokens == own["generator_tokens"]
            if not fields or "n" in fields:  # nothing of these was computed before, by anybody
                shared = usage.prompt_tokens_details.cached_tokens
                assert own["generator_tokens"] + own["verifier_tokens"] - shared == after - before
            before = after
