"""How the events of a stream reach their connection: at once where they can, by the request's task where they must, in order always."""

import asyncio
import json
import socket
from types import SimpleNamespace

import pytest

from ponder.core.asks import Extension, Prefix, Prompt
from ponder.core.budget import Budget, Cost
from ponder.serve import server, stream
from ponder.serve.desk import Ticket, Visit
from ponder.serve.errors import Refusal
from ponder.serve.menu import Menu
from ponder.serve.replies import CHAT, Writer
from ponder.serve.wire import ChatRequest
from serve.toy_server import ENDLESS, Lettered, chat, events, post, serving

PROMPT = Prompt(messages=(("user", "a"),), max_tokens=100)


class Pipe:
    """A connection that takes what is written, and says how much of it waits."""

    def __init__(self):
        self.parts, self.waiting, self.is_shut = [], 0, False

    def write(self, data):
        self.parts.append(data)

    def is_closing(self):
        return self.is_shut

    def get_write_buffer_size(self):
        return self.waiting


def visit():
    order = Menu(model="toy").order(ChatRequest.model_validate(chat(stream=True)), {})
    found = Visit("chatcmpl-1", "me", order, 1, 0)
    found.tickets.append(Ticket(SimpleNamespace(id="1", prompt=PROMPT), found, SimpleNamespace(state="running"), 0, False))
    return found


def grow(found, text):
    found.tickets[0].so_far = Extension(Prefix(PROMPT, tuple(range(len(text))), text), "limit", Cost())
    found.hear()


def content(part):
    """The text of one chunk, HTTP's framing taken off and checked."""
    size, body, _ = part.split(b"\r\n")
    assert int(size, 16) == len(body)
    return "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in body.decode().split("\n\n") if line)


async def running(found, pipe, sent):
    async def send(message):
        sent.append(message)
        pipe.parts.append(message.get("body", b""))

    task = asyncio.ensure_future(stream.Stream(found, Writer(CHAT, found, "toy", None, has_usage=False), send, pipe).run(asyncio.Future()))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_token_is_written_without_a_turn_of_the_task():
    async def main():
        found, pipe, sent = visit(), Pipe(), []
        task, num = await running(found, pipe, sent), len(sent)
        for text in ("a", "ab", "abc"):
            grow(found, text)
            assert not found.wake.is_set()
        assert [content(p) for p in pipe.parts[-3:]] == ["a", "b", "c"] and len(sent) == num
        task.cancel()

    asyncio.run(main())


def test_what_a_slow_client_has_not_taken_is_sent_by_the_task_and_in_order():
    async def main():
        found, pipe, sent = visit(), Pipe(), []
        task, num = await running(found, pipe, sent), len(sent)
        grow(found, "a")
        pipe.waiting = stream.MAX_WAITING + 1
        grow(found, "ab")
        grow(found, "abc")
        assert len(sent) == num and found.wake.is_set()
        pipe.waiting = 0
        await settle()
        assert len(sent) == num + 1 and b'"content": "bc"' in sent[-1]["body"]
        grow(found, "abcd")
        assert content(pipe.parts[-1]) == "d" and len(sent) == num + 1
        task.cancel()

    asyncio.run(main())


def test_nothing_overtakes_what_the_task_is_sending():
    async def main():
        found, pipe, written, may_go = visit(), Pipe(), [], asyncio.Event()

        async def send(message):
            await may_go.wait()
            pipe.write(message.get("body", b""))

        task = asyncio.ensure_future(stream.Stream(found, Writer(CHAT, found, "toy", None, has_usage=False), send, pipe).run(asyncio.Future()))
        await settle()
        may_go.set()
        await settle()
        may_go.clear()
        pipe.waiting = stream.MAX_WAITING + 1
        grow(found, "a")  # the task takes it, and waits in `send`
        await settle()
        pipe.waiting = 0
        grow(found, "ab")
        assert not any(b'"b"' in part for part in pipe.parts)
        may_go.set()
        await settle()
        written = b"".join(pipe.parts)
        assert written.index(b'"content": "a"') < written.index(b'"content": "b"')
        task.cancel()

    asyncio.run(main())


def test_an_error_ends_the_stream_by_its_task_and_a_broken_writer_costs_nobody_else():
    async def main():
        found, pipe, sent = visit(), Pipe(), []
        task = await running(found, pipe, sent)
        found.tickets[0].error = found.error = Refusal(500, "the engine failed")
        found.hear()
        await task
        assert b"the engine failed" in sent[-1]["body"] and not sent[-1]["more_body"]
        other = visit()
        other.tell = lambda: 1 // 0
        other.hear()
        assert other.wake.is_set() and other.tell is None

    asyncio.run(main())


@pytest.mark.parametrize("is_lent", [True, False])
def test_a_stream_is_the_same_with_and_without_a_lent_connection(is_lent, monkeypatch):
    if not is_lent:
        monkeypatch.setattr(server, "Lending", "h11")
    with serving(Lettered(ENDLESS)) as (url, _):
        found = events(post(url, chat(stream=True, n=2, max_tokens=60, stream_options={"include_usage": True})))
        whole = post(url, chat(n=2, max_tokens=60)).json()
    texts = ["".join(c["delta"].get("content", "") for e in found[:-1] for c in e["choices"] if c["index"] == i) for i in range(2)]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]] and found[-1] == "[DONE]"
    assert found[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_client_of_http_1_0_gets_its_stream_without_chunks():
    body = json.dumps(chat(stream=True, max_tokens=30)).encode()
    with serving(Lettered(ENDLESS)) as (url, _), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as plain:
        plain.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        data = b"".join(iter(lambda: plain.recv(65536), b""))
        whole = post(url, chat(max_tokens=30)).json()["choices"][0]["message"]["content"]
    head, _, stream_ = data.partition(b"\r\n\r\n")
    told = [json.loads(line[6:]) for line in stream_.decode().split("\n\n") if line.startswith("data: {")]
    assert b"chunked" not in head.lower()
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in told if e["choices"]) == whole
    assert stream_.endswith(b"data: [DONE]\n\n")


def test_a_reply_that_is_no_stream_is_not_woken_by_growth():
    class Waking(asyncio.Event):
        num = 0

        def set(self):
            type(self).num += 1
            super().set()

    with serving(Lettered(ENDLESS), menu=Menu(model="toy", most=Budget(tokens=20_000))) as (url, app):
        enter = app.desk.enter

        def entering(found, arrived):
            found.wake = Waking()
            enter(found, arrived)

        app.desk.enter = entering
        assert post(url, chat(max_tokens=300)).status_code == 200
    assert 1 <= Waking.num < 20
