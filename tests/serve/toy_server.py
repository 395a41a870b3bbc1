"""A server over a toy process, in a thread of this program: what the tests of this folder talk to."""

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx

from ponder.core.budget import Budget
from ponder.run.driver import Driver
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import Server, bind, configured
from ponder.testing.toy import ToyProcess, toy_lm

ALPHABET = 'ab\n.1{}"x:'
ENDING, ENDLESS = toy_lm(ALPHABET, seed=7), toy_lm("ab", seed=1)
ENDLESS = replace(ENDLESS, table=((0.5, 0.5, 0.0),) * 3)


class Lettered(ToyProcess):
    """A toy process that tells the texts of its tokens and may take a while for a step."""

    seconds = 0.0

    def __init__(self, lm=ENDING, seconds=0.0, **settings):
        super().__init__(lm, **settings)
        self.seconds = seconds
        self.tokenizer = SimpleNamespace(pieces=(*(c.encode() for c in lm.alphabet), b""))

    def step(self):
        if self.seconds and self.jobs:
            time.sleep(self.seconds)
        return super().step()


class Gated(Lettered):
    """Takes `num` steps and no more until it is let go on, however fast or slow anybody else is."""

    def __init__(self, lm=ENDING, *, num):
        super().__init__(lm)
        self.num_left, self.gate = num, threading.Event()

    def step(self):
        if self.jobs and not self.num_left:
            assert self.gate.wait(60), "nobody let it go on"
        self.num_left -= bool(self.jobs and self.num_left)
        return super().step()


@contextlib.contextmanager
def serving(process=None, *, store=None, menu=None, limits=None, site=None):
    """(base URL, app) of a server that runs until the end of the block."""
    process = process or Lettered()
    open_driver = lambda: Driver(process, store=store() if store else None)
    app = App(open_driver, menu or Menu(model="toy", most=Budget(tokens=20_000, seconds=60)), limits or Limits(), site or Site())
    listening = bind("127.0.0.1", 0)
    server = Server(configured(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join(10)


def chat(text="a", **fields):
    return {"model": "toy", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 1, **fields}


HTTP = httpx.Client(timeout=120, limits=httpx.Limits(max_keepalive_connections=0))


def post(url, body, path="/v1/chat/completions", **settings):
    return HTTP.post(url + path, json=body, **settings)


def get(url, **settings):
    return HTTP.get(url, **settings)


def events(response):
    """The JSON events of a stream; the last is "[DONE]"."""
    lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
