"""Requests to one endpoint: a loop in a thread, so many at once, each tried again while that may help.

Work is a coroutine that is given `send`; what it returns or raises comes out of `wait`. A cancelled one closes its connection.
"""

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from ponder.core.asks import Answer
from ponder.core.errors import BadField, EndpointError
from ponder.remote.endpoint import Endpoint
from ponder.remote.pace import Pace, Rate, backoff

T = TypeVar("T")
Json = dict[str, Any]
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that may be others next time
CONNECT_SECONDS = 10.0
LOCAL = ("localhost", "127.0.0.1", "::1")
SHOWN = 300  # characters of a server's complaint in a message


class BadReply(Exception):
    """A reply that is no answer: tried again, then an EndpointError."""


class Refused(EndpointError):
    """The server will not answer this request, now or later."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class Send(Protocol):
    """Posts `body` (gets, where it is None) and returns what `read` makes of the reply. num_tokens: what it may use at most.

    Raises EndpointError when it is refused or when no try brought an answer. `read` raises BadReply for a reply that is none.
    """

    def __call__(self, url: str, body: Json | None, read: Callable[[Json], T], num_tokens: int = 0) -> Awaitable[T]: ...


@dataclass(frozen=True)
class Fault:
    """Why a try failed: a word for counting, what to say, and the seconds that the server asks to wait."""

    kind: str
    message: str
    retry_after: float | None = None


class Wire:
    """Requests under way. `counts`: requests sent, and faults by kind. transport: another way to the server, for tests."""

    def __init__(self, endpoint: Endpoint, transport: object = None) -> None:
        self.endpoint, self.counts = endpoint, Counter[str]()
        self.pace = Pace(Rate(endpoint.requests_per_minute), Rate(endpoint.tokens_per_minute))
        self.done: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        self.futures: dict[int, concurrent.futures.Future[None]] = {}
        self.num_sent = 0
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(endpoint.concurrency)
        self.client = _client(endpoint, transport)
        self.thread = threading.Thread(target=self.loop.run_forever, name="remote", daemon=True)
        self.thread.start()

    def start(self, ticket: int, work: Callable[[Send], Awaitable[Answer]]) -> None:
        """Begins `work`; `wait` will tell how it ended, unless it is cancelled."""
        self.futures[ticket] = asyncio.run_coroutine_threadsafe(self._work(ticket, work), self.loop)

    def call(self, work: Callable[[Send], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns or raises; waits for it."""
        return asyncio.run_coroutine_threadsafe(work(self.send), self.loop).result()

    def wait(self, seconds: float) -> list[tuple[int, Answer | BaseException]]:
        """What ended since the last call; waits for one to end, at most that long."""
        ended: list[tuple[int, Answer | BaseException]] = []
        deadline = time.monotonic() + seconds
        while True:
            try:
                left = 0.0 if ended else max(0.0, deadline - time.monotonic())
                ticket, result = self.done.get(timeout=left) if left else self.done.get_nowait()
            except queue.Empty:
                return ended
            if self.futures.pop(ticket, None) is not None:
                ended.append((ticket, result))

    def cancel(self, ticket: int) -> None:
        """Ends the work and closes its connection; `wait` will not speak of it."""
        future = self.futures.pop(ticket, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Cancels everything and ends the thread."""
        for ticket in list(self.futures):
            self.cancel(ticket)
        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut(), self.loop).result(timeout=CONNECT_SECONDS)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    async def _shut(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()

    async def _work(self, ticket: int, work: Callable[[Send], Awaitable[Answer]]) -> None:
        try:
            result: Answer | BaseException = await work(self.send)
        except Exception as error:  # handed to whoever waits, who raises it
            result = error
        self.done.put((ticket, result))

    async def send(self, url: str, body: Json | None, read: Callable[[Json], T], num_tokens: int = 0) -> T:
        """See Send."""
        self.num_sent += 1
        number = self.num_sent
        for attempt in range(1, self.endpoint.tries + 1):
            async with self.slots:
                await asyncio.sleep(self.pace.take(num_tokens, self.loop.time()))
                await asyncio.sleep(self.pace.left_of_pause(self.loop.time()))  # one that began meanwhile
                self.counts["requests"] += 1
                try:
                    return read(await self._once(url, body))
                except _Failed as failed:
                    fault = failed.fault
                except BadReply as bad:
                    fault = Fault("garbage", str(bad))
            self.counts[fault.kind] += 1
            if fault.retry_after is not None:
                self.pace.pause(fault.retry_after, self.loop.time())
            if attempt < self.endpoint.tries:
                await asyncio.sleep(backoff(self.endpoint.wait, attempt, fault.retry_after, number))
        raise EndpointError(
            f"endpoint {self.endpoint.url}: {fault.message}, and so {self.endpoint.tries} times; is it running, and is this its address? "
            "What was answered before is kept where there is a store (--resume)"
        )

    async def _once(self, url: str, body: Json | None) -> Json:
        import httpx

        try:
            reply = await (self.client.get(url) if body is None else self.client.post(url, json=body))
        except httpx.TimeoutException as error:
            raise _Failed(Fault("timeout", f"no answer in time ({type(error).__name__})")) from error
        except httpx.TransportError as error:
            raise _Failed(Fault("connection", f"the connection failed ({error or type(error).__name__})")) from error
        said = reply.text[:SHOWN]
        if reply.status_code in AGAIN:
            raise _Failed(Fault(str(reply.status_code), f"status {reply.status_code}: {said}", retry_after_of(reply.headers.get("retry-after"))))
        if reply.status_code != 200:
            raise Refused(f"endpoint {self.endpoint.url} refuses with status {reply.status_code}: {said}", reply.status_code, reply.text)
        try:
            found = reply.json()
        except ValueError as error:
            raise BadReply(f"the reply is not JSON ({said!r})") from error
        if not isinstance(found, dict):
            raise BadReply(f"the reply is no JSON object ({said!r})")
        if found.get("error"):
            raise BadReply(f"the reply is an error ({said!r})")
        return found


class _Failed(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def retry_after_of(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None where it has none. (A date is not worth reading: pauses are short.)"""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def _client(endpoint: Endpoint, transport: Any) -> Any:
    try:
        import httpx
    except ImportError as error:
        raise BadField("a remote engine needs the package httpx: install ponder[remote]") from error
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=endpoint.concurrency)
    return httpx.AsyncClient(
        headers=headers, timeout=httpx.Timeout(endpoint.timeout, connect=CONNECT_SECONDS, pool=None), limits=limits,
        transport=transport, trust_env=urlsplit(endpoint.url).hostname not in LOCAL,  # proxies of the environment, but not to this machine
    )  # fmt: skip
