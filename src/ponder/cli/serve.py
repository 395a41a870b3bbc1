"""The verb `serve`: arguments to a server that runs until a signal ends it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ponder.cli import show
from ponder.cli.verbs import open_named
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.budget import parse_budget
from ponder.core.errors import BadField
from ponder.core.roles import Process
from ponder.run.driver import Driver
from ponder.run.store import SampleStore
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import bind, serve


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How the model is opened."""

    model: str
    weights: str | None
    device: str
    threads: int | None
    context: int | None
    store: Path | None
    accelerations: Accelerations = PLAIN

    def by(self, opener: Callable[..., Process]) -> Process:
        """The model, opened by a function of its name, weights, threads and settings."""
        return opener(
            self.model, self.weights, self.threads, device=self.device, context_len=self.context, accelerations=self.accelerations
        )  # fmt: skip


def run(opening: Opening, *, host: str, port: int, menu: Menu, limits: Limits, site: Site) -> int:
    """Serves until a signal; 0."""
    menu.specs.read(menu.default)
    with closing(bind(host, port)) as listening:
        process = opening.by(open_named)
        app = App(lambda: Driver(process, store=None if opening.store is None else SampleStore(opening.store)), menu, limits, site)
        address = f"http://{host}:{listening.getsockname()[1]}"
        ready = lambda: show.say(f"{menu.model} at {address}/v1 ({len(menu.models) - 1} strategies: {address}/ponder/strategies)")
        asyncio.run(serve(app, listening, ready))
    return 0


def read_keys(keys: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Those named, and the lines of a file; # begins a comment."""
    try:
        lines = [] if file is None else file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadField(f"--api-key-file {file}: {error}") from error
    return tuple(dict.fromkeys([*keys, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]))


def served_name(model: str, name: str | None) -> str:
    found = name or Path(model).name
    if "@" in found or not found.isprintable():
        raise BadField(f"name {found!r}: clients write NAME@STRATEGY, so it must not hold @; use --name")
    return found


def menu_of(*, model: str, name: str | None, strategy: str, budget: str, allow_code: bool, max_tokens: int) -> Menu:
    if max_tokens < 1:
        raise BadField(f"max_tokens={max_tokens}: must be at least 1")
    return Menu(model=served_name(model, name), default=strategy, most=parse_budget(budget), allow_code=allow_code, max_tokens=max_tokens)
