"""Random trials of a server: valid requests, clients that leave at a random moment, bodies that are no good, and kill -9 in the middle.

The server is a program of its own over the real engine with a tiny random model (tests/engine/tiny_models.py) and a sample store. After
every kill it starts again on the same store. Counted as wrong, with the trial's number: a response of 500 or more, a request that hangs,
a valid request without an answer, an answer that is not the one of an undisturbed run, a sample that was stored before a kill and is not
after it, an answered request whose second asking computes anything, and work or pages that are left when nobody asks.

    python benchmarks/serve_trials.py --num 1000
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from lib.rows import append

from ponder.core.budget import Budget
from ponder.core.rng import hash_seed
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import bind, serve
from ponder.serve.wire import ChatRequest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engine.tiny_models import tiny_decoder, tiny_process

PATH = "/v1/chat/completions"
MENU = Menu(model="m", most=Budget(seconds=120))
STRATEGIES = ("sample", "greedy", "best_of_n", "best_of_n:num=6", "self_consistency:num=4", "particle_filter:num=4", "step_beam", "beam", "mcts")
BROKEN = (
    {"n": -1}, {"n": 10**30}, {"max_tokens": 0}, {"temperature": "x"}, {"messages": []}, {"messages": 3}, {"stop": [""]}, {"tools": [1]}, {"x": 1},
    {"model": "other"}, {"ponder": {"strategy": "best_of_n:num=1e9"}}, {"ponder": {"budget": "0 s"}}, {"logit_bias": {"9999999": 1}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}},
)  # fmt: skip
KILL_EVERY = 10  # trials


def served(folder: Path) -> None:
    """A server until it is killed. SIGUSR1: what is left in it goes to folder/left."""
    process = tiny_process(tiny_decoder())
    step = process.step

    def slow_step():
        time.sleep(0.002 if process.jobs else 0.0)
        return step()

    process.step = slow_step
    app = App(lambda: Driver(process, store=SampleStore(folder / "store.sqlite")), MENU, Limits(max_jobs=12), Site())

    def tell_left(driver: Driver) -> tuple[()]:
        process.drop_cache()
        left = {"jobs": len(process.jobs), "active": len(driver.active), "todo": len(driver.todo), "pages": int(process.pool.num_used)}
        left |= {"running": len(app.desk.running), "waiting": len(app.desk.lines), "requests": sum(app.desk.visits.values())}
        (folder / "left.part").write_text(json.dumps(left))
        (folder / "left.part").rename(folder / "left")
        return ()

    signal.signal(signal.SIGUSR1, lambda *_: app.desk.stepper.inbox.put(tell_left))
    listening = bind("127.0.0.1", 0)
    asyncio.run(serve(app, listening, lambda: _written(folder / "port.part", str(listening.getsockname()[1])).replace(folder / "port")))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def nursery(folder: Path) -> None:
    """Imports once; a line on standard input makes one more server of it, whose number is printed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        number = os.fork()
        if number == 0:
            served(folder)
            os._exit(0)
        print(number, flush=True)


@dataclass
class Trials:
    """The side that asks and kills."""

    folder: Path
    nursery: subprocess.Popen
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answered: list[tuple[dict, str]] = field(default_factory=list)  # requests that anything may ask again, and their texts
    server: int = 0
    url: str = ""
    is_killing: bool = False

    def start(self) -> None:
        (self.folder / "port").unlink(missing_ok=True)
        self.nursery.stdin.write("one more\n")
        self.nursery.stdin.flush()
        self.server = int(self.nursery.stdout.readline())
        end = time.monotonic() + 120
        while not (self.folder / "port").exists():
            if time.monotonic() > end:
                raise SystemExit("the server did not start")
            time.sleep(0.005)
        self.url, self.is_killing = f"http://127.0.0.1:{(self.folder / 'port').read_text()}", False

    def kill(self) -> None:
        """kill -9, and a new server on the same store. Every sample that was stored still is."""
        before, self.is_killing = self._keys(), True
        os.kill(self.server, signal.SIGKILL)
        while Path(f"/proc/{self.server}").exists():
            time.sleep(0.002)
        self.start()
        lost = before - self._keys()
        if lost:
            self.wrong.append(f"{len(lost)} stored samples are lost")
        self.found["kills"] += 1

    def _keys(self) -> set[str]:
        with contextlib.closing(sqlite3.connect(self.folder / "store.sqlite", timeout=30)) as db:
            return {key for (key,) in db.execute("SELECT key FROM samples")}

    def check_left(self, number: int) -> None:
        """Nobody asks: no work, no page, no place in a line may be left."""
        left, end = {}, time.monotonic() + 60
        while time.monotonic() < end:
            (self.folder / "left").unlink(missing_ok=True)
            os.kill(self.server, signal.SIGUSR1)
            while not (self.folder / "left").exists() and time.monotonic() < end:
                time.sleep(0.005)
            left = json.loads((self.folder / "left").read_text()) if (self.folder / "left").exists() else {"silent": 1}
            if not any(left.values()):
                self.found["looks for leaks"] += 1
                return
        self.wrong.append(f"{number}: left {left}")

    def trial(self, number: int) -> None:
        """One request of a client; a valid one that a kill cuts is asked again."""
        draw = random.Random(number)
        kind = draw.choice(("valid", "valid", "valid", "again", "leaves", "leaves", "broken", "broken"))
        outcome = self._outcome(kind, number, draw)
        while outcome == "cut by a kill" and kind == "valid":
            self.found["cut by a kill, asked again"] += 1
            while self.is_killing:
                time.sleep(0.01)
            outcome = self._outcome(kind, number, draw)
        if outcome.startswith("wrong"):
            self.wrong.append(f"{number} {kind}: {outcome}")
        self.found[outcome.partition(":")[0]] += 1

    def _outcome(self, kind: str, number: int, draw: random.Random) -> str:
        url, body = self.url, body_of(number)
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                if kind == "leaves":
                    return leave(client, body, draw)
                if kind == "again" and self.answered:
                    return self._again(client, draw)
                return self._ask(client, body, draw.choice(BROKEN) if kind == "broken" else None)
        except httpx.ReadTimeout:
            return "left" if kind == "leaves" else "wrong: hangs"
        except (httpx.TransportError, httpx.StreamError):
            return "cut by a kill" if self.is_killing or self.url != url else "wrong: the connection broke"

    def _ask(self, client: httpx.Client, body: dict, broken: dict | None) -> str:
        response = client.post(PATH, json=body | (broken or {}))
        if broken is not None:
            return "refused" if response.status_code in (400, 404) else f"wrong: {response.status_code} for a broken body"
        if response.status_code != 200:
            return f"wrong: {response.status_code} {response.text[:200]}"
        text = response.json()["choices"][0]["message"]["content"]
        if text != alone(body):
            return "wrong: not the answer of an undisturbed run"
        self.answered.append((body, text))
        return "answered"

    def _again(self, client: httpx.Client, draw: random.Random) -> str:
        """Everything that it needs is stored."""
        body, text = draw.choice(self.answered)
        response = client.post(PATH, json=body)
        if response.status_code != 200:
            return f"wrong: {response.status_code} for a request that was answered before"
        told = response.json()
        if told["choices"][0]["message"]["content"] != text:
            return "wrong: another answer than before"
        computed = told["usage"]["ponder"]["computed_tokens"]
        return "answered again" if computed == 0 else f"wrong: {computed} tokens computed again"


def body_of(number: int) -> dict:
    draw = random.Random(f"body {number}")
    messages = [{"role": "user", "content": f"Say {number}."}]
    return {"model": f"m@{draw.choice(STRATEGIES)}", "messages": messages, "max_tokens": draw.randint(1, 60), "seed": number}


def leave(client: httpx.Client, body: dict, draw: random.Random) -> str:
    body = body | {"stream": True, "ponder": {"stream": draw.choice(("live", "final"))}}
    with client.stream("POST", PATH, json=body, timeout=httpx.Timeout(60, read=draw.uniform(0.005, 1.0))) as response:
        lines = response.iter_lines()
        for _ in range(draw.randint(0, 12)):
            next(lines, None)
    return "left" if response.status_code == 200 else f"wrong: {response.status_code}"


LOCK, PROCESS = threading.Lock(), []


def alone(body: dict) -> str:
    """The text of the same request with nobody beside it and no store."""
    order = MENU.order(ChatRequest.model_validate(body), {})
    job = Job(
        id="1", prompt=order.prompts[0], seed=hash_seed(order.seed, 0),
        recipe=Recipe(label=order.spec, strategy=order.strategy, budget=Budget()),
    )  # fmt: skip
    with LOCK:
        if not PROCESS:
            PROCESS.append(tiny_process(tiny_decoder()))
        PROCESS[0].drop_cache()
        ((_, result),) = Driver(PROCESS[0]).run([job])
    return result.text


def run(trials: Trials, num: int, side: int) -> None:
    """Rounds of KILL_EVERY trials, of which one is the kill: every other time in the midst of the others, else after a look for leaks."""
    with ThreadPoolExecutor(side) as pool:
        for start in range(0, num, KILL_EVERY):
            draw = random.Random(f"round {start}")
            under_way = [pool.submit(trials.trial, number) for number in range(start, min(num, start + KILL_EVERY) - 1)]
            if start // KILL_EVERY % 2 == 0:
                for future in under_way:
                    future.result()
                trials.check_left(start)
                under_way = [pool.submit(trials.trial, num + start + i) for i in range(3)]  # in whose midst it is killed
            wanted = draw.randrange(len(under_way))
            while sum(future.done() for future in under_way) < wanted:
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.05))
            trials.kill()
            for future in under_way:
                future.result()
            if start % 100 == 0:
                print(start, dict(trials.found), trials.wrong[:3], file=sys.stderr)
        trials.check_left(num)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--side", type=int, default=8, help="clients at a time")
    parser.add_argument("--nursery", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.nursery:
        nursery(args.nursery)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--nursery", name]
        starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        trials = Trials(Path(name), starter)
        try:
            trials.start()
            run(trials, args.num, args.side)
        finally:
            if trials.server:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(trials.server, signal.SIGKILL)
            starter.stdin.close()
            starter.wait(20)
    row = {
        "benchmark": "serve_trials", "model": "tiny (random weights)", "num": args.num, "found": dict(sorted(trials.found.items())),
        "wrong": len(trials.wrong), "first_wrong": trials.wrong[:5], "seconds": round(time.monotonic() - start, 1),
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    append("serve", row)


if __name__ == "__main__":
    main()
