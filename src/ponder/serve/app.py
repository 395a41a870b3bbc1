"""The application: routes, keys, and what stands beside the completions."""

import asyncio
import hmac
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ponder.core.errors import BadField
from ponder.run.driver import Driver
from ponder.serve.desk import Desk, Limits
from ponder.serve.embed import Embeddings
from ponder.serve.errors import Refusal, on_bug, on_refusal, on_status
from ponder.serve.generate import Generate
from ponder.serve.menu import Menu, described
from ponder.serve.metrics import Metrics
from ponder.serve.openapi import openapi
from ponder.serve.replies import CHAT, TEXT, Pieces, finite
from ponder.serve.runs import Run
from ponder.serve.tools import Template

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Who may come, and from where."""

    keys: tuple[str, ...] = ()  # none: everybody who reaches the port
    origins: tuple[str, ...] = ()  # of web pages elsewhere that may call this server; none: none
    page: Path = field(default=PAGE)

    def __post_init__(self) -> None:
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() for key in self.keys):
            raise BadField("an API key is too short or has characters that a header cannot carry; use 8 or more of ASCII")


class App:
    """The routes over a desk. `pieces`: bytes of every token, where the process has a vocabulary."""

    def __init__(self, open: Callable[[], Driver], menu: Menu, limits: Limits, site: Site) -> None:
        self.menu, self.site = menu, site
        self.metrics = Metrics()
        self.desk = Desk(open, limits, self.metrics)

    def build(self) -> Starlette:
        """The ASGI application; the model is opened when it starts."""
        cors = Middleware(CORSMiddleware, allow_origins=list(self.site.origins), allow_methods=["GET", "POST"], allow_headers=["*"])
        counted = Middleware(Counted, self.metrics)
        return Starlette(
            routes=self._routes(), lifespan=self._lifespan, middleware=[counted, *([cors] if self.site.origins else [])],
            exception_handlers={Refusal: on_refusal, HTTPException: on_status, Exception: on_bug},
        )  # fmt: skip

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.desk.start()
        try:
            yield
        finally:
            await self.desk.stop()

    def _routes(self) -> list[BaseRoute]:
        generate = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}
        get = {
            "/health": self.health, "/metrics": self.show_metrics, "/openapi.json": self.show_schema, "/v1/models": self.models,
            "/v1/models/{name:path}": self.one_model, "/ponder/strategies": self.strategies, "/ponder/ledger": self.ledger,
            "/ponder/runs": self.list_runs, "/ponder/runs/{id}": self.one_run, "/ponder/runs/{id}/events": self.run_events,
        }  # fmt: skip
        routes: list[BaseRoute] = [
            Route(
                path,
                Generate(self.desk, self.menu, shape, who=self.who, pieces=lambda: self.pieces, template=lambda: self.template),
                methods=["POST"],
            )
            for path, shape in generate.items()
        ]
        routes.append(Route("/v1/embeddings", Embeddings(self.desk, self.menu, who=self.who, tokenizer=lambda: self.tokenizer), methods=["POST"]))
        routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()]
        if (self.site.page / "index.html").exists():
            routes.append(Mount("/", Page(directory=self.site.page, html=True)))
        return routes

    @property
    def tokenizer(self) -> object:
        return getattr(self.desk.driver.process, "tokenizer", None)

    @property
    def pieces(self) -> Pieces | None:
        return getattr(self.tokenizer, "pieces", None)

    @property
    def template(self) -> Template | None:
        return getattr(self.tokenizer, "template", None)

    def who(self, request: Request) -> str:
        """The client of a request: its key, or where there are none its host. Raises Refusal (401, 403)."""
        self._check_origin(request)
        if not self.site.keys:
            return request.client.host if request.client else "local"
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        found = [i for i, known in enumerate(self.site.keys) if hmac.compare_digest(known.encode(), key.strip().encode(errors="replace"))]
        if scheme.lower() != "bearer" or not found:
            message = "no API key of this server: send it as 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return f"key {found[0] + 1}"

    def _check_origin(self, request: Request) -> None:
        """A web page elsewhere may not spend this server's time, even where its browser would hide the reply from it."""
        origin = request.headers.get("origin")
        if origin is not None and origin not in self.site.origins and origin.partition("://")[2] != request.headers.get("host"):
            raise Refusal(403, f"pages of {origin[:200]!a} may not call this server: start it with --cors-origin", code="foreign_origin")

    def viewer(self, request: Request) -> str | None:
        """Whose runs a request may see; None: everybody's."""
        client = self.who(request)
        return client if self.site.keys else None

    # what is told

    async def health(self, request: Request) -> Response:
        desk = self.desk
        told = {
            "status": "draining" if desk.is_draining else "ok",
            "model": self.menu.model,
            "running": len(desk.running),
            "waiting": len(desk.lines),
        }
        return reply(told, status=503 if desk.is_draining else 200, headers={"Retry-After": "5"} if desk.is_draining else None)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def show_schema(self, request: Request) -> Response:
        return reply(openapi())

    async def models(self, request: Request) -> Response:
        self.who(request)
        return reply({"object": "list", "data": [self._model(name) for name in self.menu.models]})

    async def one_model(self, request: Request) -> Response:
        self.who(request)
        name = request.path_params["name"]
        if name not in self.menu.models:
            raise Refusal(404, f"model {name[:100]!a} is not here: see /v1/models", param="model", code="model_not_found")
        return reply(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        process = self.desk.driver.process
        own = {"context": process.context_len, "process": process.model_id, "strategy": name.partition("@")[2] or self.menu.default}
        return {"id": name, "object": "model", "created": 0, "owned_by": "ponder", "ponder": own}

    async def strategies(self, request: Request) -> Response:
        self.who(request)
        return reply(described(self.menu))

    async def ledger(self, request: Request) -> Response:
        self.who(request)
        ledger = self.desk.driver.ledger
        totals = getattr(self.desk.driver.process, "totals", None)
        found = asdict(ledger) | {"overhead": ledger.overhead, "reuse": ledger.reuse, "verifier_faults": dict(self.desk.driver.judging.faults)}
        return reply(found | {"process": None if totals is None else asdict(totals), "kv_bytes": getattr(self.desk.driver.process, "nbytes", None)})

    async def list_runs(self, request: Request) -> Response:
        return reply({"object": "list", "data": [run.summary() for run in self.desk.runs.of(self.viewer(request))]})

    def _run(self, request: Request) -> Run:
        name = request.path_params["id"]
        run = self.desk.runs.get(name, self.viewer(request))
        if run is None:
            raise Refusal(404, f"run {name[:100]!a} is not among the runs of late: see /ponder/runs", code="run_not_found")
        return run

    async def one_run(self, request: Request) -> Response:
        run = self._run(request)
        return reply(run.summary() | {"trace": [json.loads(line) for line in run.lines]})

    async def run_events(self, request: Request) -> Response:
        run = self._run(request)
        return StreamingResponse(events_of(run), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def events_of(run: Run) -> AsyncIterator[bytes]:
    """A run's trace lines as server-sent events, those to come too; at the end its summary as event "end"."""
    wake, num = asyncio.Event(), 0
    run.waiters.add(wake)
    try:
        while True:
            wake.clear()
            is_over, lines = run.is_over, run.lines[num:]
            if lines:
                yield b"".join(f"event: line\ndata: {line}\n\n".encode() for line in lines)
                num += len(lines)
            if is_over:
                yield f"event: end\ndata: {json.dumps(finite(run.summary()))}\n\n".encode()
                return
            await wake.wait()
    finally:
        run.waiters.discard(wake)


class Page(StaticFiles):
    """The playground's files, which no other site may frame and no browser may take for something else."""

    def file_response(self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(
            {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "frame-ancestors 'none'", "Referrer-Policy": "no-referrer"}
        )
        return response


def reply(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(finite(value)), status_code=status, headers=headers, media_type="application/json")


class Counted:
    """Middleware: counts responses by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(path_of(scope["path"]), message["status"])
            await send(message)

        await self.app(scope, receive, counting)


KNOWN: Sequence[str] = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/ponder/runs",
    "/ponder/strategies",
    "/ponder/ledger",
    "/health",
    "/metrics",
)


def path_of(path: str) -> str:
    """A label of few values: paths that clients make up count together."""
    return next((known for known in KNOWN if path == known or path.startswith(known + "/")), "other")
