"""POST /v1/chat/completions and /v1/completions, as plain ASGI: a body in, a reply or a stream out, an eye on the client's going."""

import asyncio
import secrets
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ponder.serve.desk import Desk, Visit
from ponder.serve.errors import Refusal, bad
from ponder.serve.menu import Menu
from ponder.serve.replies import Pieces, Shape, Writer
from ponder.serve.stream import Gone, Stream, is_gone, lent_by, raise_error
from ponder.serve.tools import Template
from ponder.serve.wire import ChatRequest, CompletionRequest, read

BODY_SECONDS = 30.0  # that a client may take to send a body
JSON = [(b"content-type", b"application/json")]


class Generate:
    """An ASGI endpoint. who: names the client of a request, or refuses it."""

    def __init__(
        self, desk: Desk, menu: Menu, shape: Shape, *, who: Callable[[Request], str], pieces: Callable[[], Pieces | None],
        template: Callable[[], Template | None],
    ) -> None:  # fmt: skip
        self.desk, self.menu, self.shape, self.who, self.pieces, self.template = desk, menu, shape, who, pieces, template
        self.kind: type[ChatRequest] | type[CompletionRequest] = ChatRequest if shape.is_chat else CompletionRequest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.perf_counter()
        request = Request(scope)
        client = self.who(request)
        body = await read_body(request, receive, self.desk.limits.max_body)
        asked = read(self.kind, body)
        order = self.menu.order(asked, request.headers, self.template())
        pieces = self.pieces() if order.logprobs is not None else None
        if order.logprobs is not None and pieces is None:
            raise bad("logprobs", "logprobs: this model does not tell the texts of its tokens; leave them out")
        seed = secrets.randbits(53) if order.seed is None else order.seed
        visit = Visit(f"{self.shape.prefix}-{secrets.token_hex(12)}", client, order, seed, int(time.time()))
        self.desk.enter(visit, arrived)
        gone = gone_of(receive, visit)
        try:
            if asked.stream:
                has_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
                await Stream(visit, Writer(self.shape, visit, asked.model, pieces, has_usage=has_usage), send, lent_by(scope)).run(gone)
            else:
                await self._whole(visit, asked.model, pieces, gone=gone, send=send)
        finally:
            gone.cancel()
            self.desk.leave(visit)

    async def _whole(self, visit: Visit, model: str, pieces: Pieces | None, *, gone: Gone, send: Send) -> None:
        visit.tell = lambda: not visit.is_settled  # how it grows is nobody's business here
        while not visit.is_settled:
            if await is_gone(visit, gone):
                return
        raise_error(visit)
        headers = [*JSON, (b"x-ponder-run", visit.id.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.shape.reply(visit, model, pieces)})


def gone_of(receive: Receive, visit: Visit) -> Gone:
    """Done when the client has closed the connection, of which the visit's task then hears."""
    gone = asyncio.ensure_future(_gone(receive))
    gone.add_done_callback(lambda _: visit.wake.set())
    return gone


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, receive: Receive, most: int) -> bytes:
    """Raises Refusal: 413 for too many bytes, 408 for a body that does not come."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise _too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "the client has gone", code="gone")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} s") from error


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is longer than {most} bytes, the most that this server reads", code="body_too_large")
