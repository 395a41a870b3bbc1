"""A server that speaks OpenAI's API, in memory or on a port of this machine, whose answers are a function of the request and
whose faults are scripted: one entry of `faults` per request, in the order of arrival, None for none."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from ponder.core.rng import hash_seed

WORDS = ["the", "answer", "is", "four", "five", "so", "we", "add", "two", "\n"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer, or on its way."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # sent instead of the answer
    seconds: float = 0.0  # waited first
    drop: str = ""  # fields of the answer to leave out: "usage", "logprobs", "choices"
    cut: bool = False  # the connection ends in the middle of the body


@dataclass
class FakeServer:
    """`words` answers each request: (seed, number of the word) -> word or None for the end. One word is one token."""

    owner: str = "vllm"
    faults: list[Fault | None] = field(default_factory=list)
    word: Callable[[int, int], str | None] = lambda seed, i: None if i >= 12 else " " + WORDS[hash_seed(seed, i) % len(WORDS)]
    tells_log_p: bool = True
    delay: Callable[[Json], float] = lambda body: 0.0
    cached: int = 0

    def __post_init__(self) -> None:
        self.requests: list[Json] = []
        self.at: list[float] = []  # when each came
        self.under_way = self.most_under_way = self.num_dropped = 0

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": self.owner, "max_model_len": 4096}]})
        body = json.loads(request.content)
        number = len(self.requests)
        self.requests.append(body)
        self.at.append(time.monotonic())
        fault = self.faults[number] if number < len(self.faults) else None
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep((fault.seconds if fault else 0.0) + self.delay(body))
        except asyncio.CancelledError:
            self.num_dropped += 1
            raise
        finally:
            self.under_way -= 1
        return self._response(body, request.url.path, fault)

    def _response(self, body: Json, path: str, fault: Fault | None) -> httpx.Response:
        answer = self.answer(body, is_chat=path.endswith("/chat/completions"))
        if fault is None:
            return httpx.Response(200, json=answer)
        if fault.cut:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        answer = {k: v for k, v in answer.items() if k != fault.drop}
        if fault.drop == "logprobs":
            answer["choices"][0].pop("logprobs", None)
        return httpx.Response(fault.status, headers=fault.headers, text=fault.body if fault.body is not None else json.dumps(answer))

    def answer(self, body: Json, *, is_chat: bool) -> Json:
        begun = body["messages"][-1]["content"] if is_chat and body["messages"][-1]["role"] == "assistant" else ""
        words, finish, matched = self._drawn(body)
        text = "".join(words)
        if matched is not None:
            text = text[: text.index(matched)]
        tells = self.tells_log_p and body.get("logprobs")
        entries = [{"token": w, "logprob": -0.1 * (1 + len(w)), "top_logprobs": []} for w in words] if tells else None
        choice: Json = {"index": 0, "finish_reason": finish, "logprobs": {"content": entries} if entries is not None else None}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice |= {"stop_reason": matched} if self.owner == "vllm" else {}
        prompt = body["messages"] if is_chat else [{"content": body["prompt"]}]
        num = sum(len(m["content"].split()) + 2 for m in prompt) + (0 if begun else 1)
        usage = {"prompt_tokens": num, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": min(self.cached, num)}}
        return {"choices": [choice], "usage": usage}

    def _drawn(self, body: Json) -> tuple[list[str], str, str | None]:
        words: list[str] = []
        seed = 0 if body.get("temperature") == 0 else body.get("seed", 0)
        while len(words) < body["max_tokens"]:
            word = self.word(seed, len(words))
            if word is None:
                return words, "stop", None
            words.append(word)
            for stop in body.get("stop", ()):
                if stop in "".join(words):
                    return words, "stop", stop
        return words, "length", None

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)


@contextmanager
def listening(server: FakeServer) -> Iterator[str]:
    """The server on a port of this machine, in a thread: yields the API's URL. Leaving it cuts every connection."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rows = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (row.partition(": ") for row in rows if row)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                request = httpx.Request(line.split()[0], "http://fake" + line.split()[1], content=content)
                writer.write(await _wired(server, request))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, httpx.RemoteProtocolError):
            pass
        finally:
            writer.close()

    started = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
    try:
        yield f"http://127.0.0.1:{started.sockets[0].getsockname()[1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(_stopped(started), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _wired(server: FakeServer, request: httpx.Request) -> bytes:
    response = await server.handle(request)
    head = f"HTTP/1.1 {response.status_code} X\r\ncontent-type: application/json\r\ncontent-length: {len(response.content)}\r\n"
    return (head + "".join(f"{k}: {v}\r\n" for k, v in response.headers.items() if k == "retry-after") + "\r\n").encode() + response.content


async def _stopped(started: asyncio.Server) -> None:
    started.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(3):  # closed transports let go of their sockets in the loop's next rounds
        await asyncio.sleep(0)
