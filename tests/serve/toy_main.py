"""A server over a toy process as a program of its own: PORT-FILE [STORE [SECONDS]]. What tests kill."""

import asyncio
import sys
from pathlib import Path

from ponder.core.budget import Budget
from ponder.run.driver import Driver
from ponder.run.store import SampleStore
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import bind, serve
from serve.toy_server import ENDING, Lettered


def main(port_file: str, store: str = "", seconds: str = "0") -> None:
    listening = bind("127.0.0.1", 0)
    open_driver = lambda: Driver(Lettered(ENDING, seconds=float(seconds)), store=SampleStore(store) if store else None)
    menu = Menu(model="toy", most=Budget(tokens=2000, seconds=20), max_tokens=30)
    app = App(open_driver, menu, Limits(drain=5.0), Site())
    ready = lambda: Path(port_file).write_text(str(listening.getsockname()[1]))
    asyncio.run(serve(app, listening, ready))


if __name__ == "__main__":
    main(*sys.argv[1:])
