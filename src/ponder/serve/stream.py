"""A streamed reply: tokens go to the connection in the call that tells of them; the request's task begins, ends and waits for slow clients."""

import asyncio
import time
from typing import Protocol

from starlette.types import Message, Scope, Send

from ponder.serve.desk import Visit
from ponder.serve.errors import Refusal
from ponder.serve.replies import Writer

QUIET_SECONDS = 15.0  # without content: a turn of the strategy sends a comment, so that proxies keep the connection
MAX_WAITING = 1 << 16  # bytes that a connection has not taken yet: beyond, the task waits until it has
LENT = "ponder.connection"  # of scope["extensions"]: see server.Lending

SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
    (b"transfer-encoding", b"chunked"),
]  # fmt: skip
Gone = asyncio.Future[None]


class Connection(Protocol):
    """What a server lends of asyncio.Transport."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...


def lent_by(scope: Scope) -> Connection | None:
    """The connection under a request, where its server lends it and the reply has HTTP/1.1's chunks."""
    return scope.get("extensions", {}).get(LENT) if scope["http_version"] == "1.1" else None


class Stream:
    """Writes the events of a visit. Without a connection every one of them goes by `send`, which costs a turn of the task."""

    def __init__(self, visit: Visit, writer: Writer, send: Send, connection: Connection | None) -> None:
        self.visit, self.writer, self.send, self.connection = visit, writer, send, connection
        self.is_sending = False  # the task is: what came later must not overtake it
        self.sent = time.monotonic()

    async def run(self, gone: Gone) -> None:
        """Until the end, or until the client has gone. Raises the Refusal of a request that is refused before it begins."""
        visit = self.visit
        while all(ticket.run.state == "queued" for ticket in visit.tickets):  # what is refused before it begins has its own status
            if await is_gone(visit, gone):
                return
        raise_error(visit)
        await self.send({"type": "http.response.start", "status": 200, "headers": [*_headers(self.connection), (b"x-ponder-run", visit.id.encode())]})
        opening = self.writer.opening()
        if self.connection is not None:
            visit.tell = self.tell
        while True:
            self.is_sending = True
            is_last = await self._pass_on(opening)
            self.is_sending, opening = False, b""
            if is_last or await is_gone(visit, gone):
                return

    async def _pass_on(self, opening: bytes) -> bool:
        """Sends what is new, after `opening`. Whether that was the end."""
        is_over, error = self.visit.is_over, self.visit.error
        told = opening + self.writer.news()
        if error is not None:
            refusal = error if isinstance(error, Refusal) else Refusal(500, str(error))
            await self.send(_part(told + self.writer.failure(refusal.body), more=False))
        elif is_over:
            await self.send(_part(told + self.writer.closing(), more=False))
        elif told or self._is_quiet():
            await self.send(_part(told or b": waiting\n\n"))
            self.sent = time.monotonic()
        return is_over or error is not None

    def tell(self) -> bool:
        """Writes what is new. False, and nothing written, where the task has to: the end, or a client that reads slowly."""
        connection = self.connection
        if connection is None or self.is_sending or self.visit.is_settled or connection.get_write_buffer_size() > MAX_WAITING:
            return False
        told = self.writer.news() or (b": waiting\n\n" if self._is_quiet() else b"")
        if told and not connection.is_closing():
            connection.write(b"%x\r\n%b\r\n" % (len(told), told))
            self.sent = time.monotonic()
        return True

    def _is_quiet(self) -> bool:
        return time.monotonic() - self.sent > QUIET_SECONDS


def _headers(connection: Connection | None) -> list[tuple[bytes, bytes]]:
    return SSE if connection is not None else SSE[:-1]


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def raise_error(visit: Visit) -> None:
    if visit.error is not None:
        raise visit.error


async def is_gone(visit: Visit, gone: Gone) -> bool:
    """Waits for news of a request, and says whether its client has gone."""
    await visit.wake.wait()
    visit.wake.clear()
    return gone.done()
