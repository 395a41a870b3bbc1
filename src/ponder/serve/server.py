"""Runs the application on a port until a signal says to stop, and then lets what is under way come to its end."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ponder.core.errors import BadField
from ponder.serve.app import App
from ponder.serve.stream import LENT

SWITCH_SECONDS = 0.0005  # a thread that wants Python gets it: the event loop must not wait 5 ms for the engine's thread


class Server(uvicorn.Server):
    """uvicorn without its own ideas about signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Lending(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # httptools where it is installed, else h11
    """Lends a request its connection, so that a token can be written without a turn of the event loop (serve.stream)."""

    app: ASGIApp

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        inner = self.app

        async def lending(scope: Scope, receive: Receive, send: Send) -> None:
            await inner({**scope, "extensions": {**scope.get("extensions", {}), LENT: transport}}, receive, send)

        self.app = lending


def configured(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app.build(), http=Lending, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=3, ws="none", server_header=False
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises BadField for an address that cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, OverflowError) as error:
        raise BadField(f"address {host}:{port}: {error}; name another by --host and --port") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(512)
    except (OSError, OverflowError) as error:
        listening.close()
        raise BadField(f"address {host}:{port}: {error}; name another by --host and --port") from error
    return listening


async def serve(app: App, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT: then new requests are refused (503), those under way have limits.drain seconds. A second signal: none.

    Raises what opening the driver raised.
    """
    await app.desk.start()  # here, where a failure is an exception
    server, drains = Server(configured(app)), list[asyncio.Task[None]]()

    async def drain(seconds: float) -> None:
        await app.desk.drain(seconds)
        server.should_exit = True

    def on_signal() -> None:
        drains.append(asyncio.create_task(drain(0.0 if drains else app.desk.limits.drain)))

    sys.setswitchinterval(SWITCH_SECONDS)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        on_ready()
    await running
    for task in drains:
        task.cancel()
