"""Embeddings by OpenAI's own client: the model's last hidden state, as transformers computes it."""

import math

import httpx
import openai
import pytest
import torch

from engine.tiny_models import ByteTokenizer, tiny, tiny_decoder, tiny_process
from ponder.core.budget import Budget
from ponder.run.driver import Driver
from ponder.serve.menu import Menu
from serve.toy_server import get, post, serving

TEXTS = ["Paris is in France.", "a", "Ein Bär."]


@pytest.fixture(scope="module")
def server():
    with serving(tiny_process(tiny_decoder(is_exact=True)), menu=Menu(model="m", most=Budget(tokens=20_000))) as (url, app):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), url, app


def expected(text):
    """By transformers: the last row of the last hidden states, normed, at length 1."""
    _, model = tiny("llama")
    ids = ByteTokenizer().render((("raw", text),))
    with torch.inference_mode():
        row = model.model(torch.tensor([ids])).last_hidden_state[0, -1].double()
    return (row / row.norm()).tolist()


def test_an_embedding_is_the_last_hidden_state(server):
    client, _, _ = server
    found = client.embeddings.create(model="m", input=TEXTS)  # the client asks for base64 by itself
    assert [d.index for d in found.data] == [0, 1, 2]
    for text, told in zip(TEXTS, found.data, strict=True):
        assert told.embedding == pytest.approx(expected(text), abs=2e-5)
        assert math.fsum(x * x for x in told.embedding) == pytest.approx(1.0, abs=1e-5)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(ByteTokenizer().render((("raw", t),))) for t in TEXTS)


def test_texts_and_floats_and_the_runs_beside_them_do_not_matter(server):
    client, _, _ = server
    alone = [client.embeddings.create(model="m", input=text, encoding_format="float").data[0].embedding for text in TEXTS]
    together = client.embeddings.create(model="m", input=TEXTS, encoding_format="float").data
    packed = client.embeddings.create(model="m", input=TEXTS).data
    for one, of_many, short in zip(alone, together, packed, strict=True):
        assert one == pytest.approx(of_many.embedding, abs=1e-6) and one == pytest.approx(short.embedding, abs=1e-6)


def test_tokens_of_a_text_are_the_text():
    class Plain(ByteTokenizer):
        def render(self, messages, prefill=""):
            return list(messages[0][1].encode())

    process = tiny_process(tiny_decoder())
    process.tokenizer = Plain()
    with serving(process, menu=Menu(model="m")) as (url, _):
        by = lambda value: [d["embedding"] for d in post(url, {"model": "m", "input": value}, "/v1/embeddings").json()["data"]]
        assert by("abc") == by([97, 98, 99]) == by([[97, 98, 99]])
        refused = post(url, {"model": "m", "input": [200]}, "/v1/embeddings")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["a", ""]}, 400, "input"),
        ({"input": [99999]}, 400, "input"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "model": "other"}, 404, "model"),
        ({"input": "a" * 600}, 400, "input"),
    ],
)
def test_what_is_not_honoured_is_refused_and_named(server, fields, status, param):
    response = httpx.post(server[1] + "/v1/embeddings", json={"model": "m", **fields}, timeout=60)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_an_engine_that_shows_no_states_says_so_and_a_spent_budget_too():
    process = tiny_process(tiny_decoder())
    process.offers = frozenset({"log_p"})
    with serving(process, menu=Menu(model="m")) as (url, _):
        refused = post(url, {"model": "m", "input": "a"}, "/v1/embeddings")
        assert refused.status_code == 400 and "hidden states" in refused.json()["error"]["message"]
    with serving(tiny_process(tiny_decoder()), menu=Menu(model="m", most=Budget(tokens=3))) as (url, app):
        assert post(url, {"model": "m", "input": "abcdef"}, "/v1/embeddings").status_code == 400
        assert post(url, {"model": "m", "input": "a"}, "/v1/embeddings").status_code == 200
        assert get(url + "/ponder/runs").json()["data"][0]["strategy"] == "embeddings"
        assert isinstance(app.desk.driver, Driver) and not app.desk.driver.process.jobs
