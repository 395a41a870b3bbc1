"""Bodies that are no good: always a 400 that names the field, never an exception, never a value of another type."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.serve.errors import Refusal
from ponder.serve.menu import Menu
from ponder.serve.wire import ChatRequest, CompletionRequest, read

MENU = Menu(model="toy")
GOOD = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
FIELDS = [*sorted(ChatRequest.model_fields), "tools", "functions", "suffix", "nonsense", "__class__", "schema"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=8)
NEAR = st.sampled_from(
    [0, -1, 10**40, 1.5, 1e308, "", "1", [], {}, [[]], [None], {"type": "text"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
     {"type": "json_schema"}, {"type": 3}, {"0": 1.0}, {"-1": 1}, ["a", "b"], {"strategy": "sample:num=2"}, {"strategy": "sample:num=-3"},
     {"strategy": "x" * 401}, {"budget": "1e400 tokens"}, {"budget": "5 s"}, {"include_usage": True}, [{"role": "tool", "content": "x"}],
     [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], [{"role": "user", "content": [{"type": "text", "text": "x"}]}]]
)  # fmt: skip


@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES | NEAR, min_size=1, max_size=3))
@settings(deadline=None, max_examples=400)
def test_a_request_is_understood_or_refused_with_its_field(changes):
    body = json.dumps(GOOD | changes).encode()
    try:
        order = MENU.order(read(ChatRequest, body), {})
    except Refusal as refusal:
        assert refusal.status in (400, 404) and refusal.message and json.dumps(refusal.body)
        blamed = (refusal.param or "").partition(".")[0].partition("[")[0]
        assert blamed in changes or blamed in ("stream_options", "max_tokens", "top_logprobs", "n") or not blamed, (refusal.param, changes)
    else:
        assert order.prompts and 1 <= order.num * len(order.prompts) <= 64
        assert all(v is None for k, v in changes.items() if k not in ChatRequest.model_fields)


NAMES, KEYS = ["sample", "mcts", "beam", "plangen"], ["num", "temperature", "width", "arms", "steps", "verifier", "top_k"]
SPECS = st.text(alphabet="abcdefgnmu_:=,.0123456789-e", max_size=40)
NEAR_SPECS = st.builds("{}:{}={}".format, st.sampled_from(NAMES), st.sampled_from(KEYS), st.text(max_size=10))


@given(spec=SPECS | NEAR_SPECS)
@settings(deadline=None, max_examples=300)
def test_a_spec_is_read_or_refused(spec):
    body = json.dumps(GOOD | {"ponder": {"strategy": spec}}).encode()
    try:
        MENU.order(read(ChatRequest, body), {})
    except Refusal as refusal:
        assert refusal.status == 400 and refusal.param == "ponder.strategy"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"model": NaN}', b'{"a": 1e999}', b"[" * 100_000, b'{"x": ' * 5000 + b"1" + b"}" * 5000,
     b'{"n": 1' + b"0" * 5000 + b"}", b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}'],
    ids=range(12),
)  # fmt: skip
def test_bodies_that_are_no_request(body):
    with pytest.raises(Refusal) as caught:
        MENU.order(read(ChatRequest, body), {})
    assert caught.value.status in (400, 404) and json.dumps(caught.value.body)


def test_null_is_left_out():
    nulls = {name: None for name in ChatRequest.model_fields if name not in GOOD} | {"tools": None, "function_call": None}
    assert MENU.order(read(ChatRequest, json.dumps(GOOD | nulls).encode()), {}) == MENU.order(read(ChatRequest, json.dumps(GOOD).encode()), {})


def test_the_two_kinds_do_not_share_fields_that_only_one_honours():
    for kind, body in ((CompletionRequest, GOOD), (ChatRequest, {"model": "toy", "prompt": "a"})):
        with pytest.raises(Refusal):
            read(kind, json.dumps(body).encode())
