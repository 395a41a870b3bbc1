"""The server over the real engine: pages, counts, forms, token texts."""

import json
import time

import pytest
import torch

from ponder.catalogue import open_model
from ponder.core.budget import Budget
from ponder.serve.menu import Menu
from serve.toy_server import HTTP, events, post, serving

MENU = Menu(model="smollm2-135m", most=Budget(tokens=50_000, seconds=300))


@pytest.fixture(scope="module")
def server(smollm2_path):
    process = open_model(smollm2_path, threads=torch.get_num_threads())
    with serving(process, menu=MENU) as (url, app):
        yield url, app, process


def chat(text, **fields):
    return {"model": "smollm2-135m", "messages": [{"role": "user", "content": text}], "max_tokens": 16, "seed": 1, **fields}


def held(process):
    """Pages that are neither free nor of prefixes that nobody uses."""
    process.drop_cache()
    return process.pool.num_used


@pytest.mark.parametrize("model", ["smollm2-135m", "smollm2-135m@best_of_n:num=6", "smollm2-135m@particle_filter:num=4"])
def test_a_client_that_goes_leaves_no_page(server, model):
    url, app, process = server
    with HTTP.stream("POST", url + "/v1/chat/completions", json=chat("Tell a long story.", model=model, stream=True, max_tokens=1500)) as response:
        lines = response.iter_lines()  # kept: without it the response closes
        next(lines)
        steps = app.desk.driver.ledger.steps
        while app.desk.driver.ledger.steps < steps + 3:
            time.sleep(0.01)
    end = time.monotonic() + 60
    while process.jobs or app.desk.running:
        assert time.monotonic() < end, "work was left"
        time.sleep(0.01)
    assert not process.running and not process.waiting and held(process) == 0


def test_usage_is_the_engines(server):
    url, _, process = server
    process.drop_cache()
    for fields in ({}, {"n": 3}, {"model": "smollm2-135m@best_of_n:num=3,verifier=p_true"}, {"model": "smollm2-135m@beam:width=2"}):
        before = process.totals.tokens
        usage = post(url, chat(f"Say {len(fields)} words.", **fields)).json()["usage"]
        assert usage["ponder"]["computed_tokens"] == process.totals.tokens - before
        assert usage["completion_tokens"] + usage["prompt_tokens"] == usage["ponder"]["generator_tokens"]


def test_forms_are_kept(server):
    url, _, _ = server
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}}
    for model in ("smollm2-135m", "smollm2-135m@best_of_n:num=3"):
        reply = post(url, chat("Give a and b.", model=model, response_format=wanted, max_tokens=60)).json()["choices"][0]
        found = json.loads(reply["message"]["content"])
        assert reply["finish_reason"] == "stop" and set(found) == {"a", "b"} and isinstance(found["a"], int) and found["b"] in ("x", "y")
    assert post(url, chat("x", response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}})).json()["error"]["param"]


def test_a_stream_of_the_real_model_is_its_reply(server):
    url, _, _ = server
    for fields in ({"logprobs": True, "top_logprobs": 1}, {"stop": [" the", "."]}):
        body = chat("Write one sentence with an emoji.", temperature=1.2, **fields)
        whole = post(url, body).json()["choices"][0]
        told = events(post(url, body | {"stream": True}))
        choices = [c for e in told[:-1] for c in e["choices"]]
        assert "".join(c["delta"].get("content") or "" for c in choices) == whole["message"]["content"] and len(choices) > 4
        rows = [row for c in choices for row in (c["logprobs"] or {"content": []})["content"]]
        assert rows == ((whole["logprobs"] or {"content": []})["content"])
        if rows:
            text = b"".join(bytes(row["bytes"]) for row in rows).decode()
            assert text == whole["message"]["content"] and all(r["top_logprobs"][0]["logprob"] >= r["logprob"] for r in rows)
