"""What the server costs beside the engine in this program: throughput of N concurrent streams, and the latency that a token gains.

Both sides run the same prompts, seeds and settings on one process, alternating, in one run. In process: an online driver that is turned
until all N answers are whole. Served: the same driver behind the server's thread and a socket; the client (lib/streams_client.py) is a
program of its own that parses nothing, so that its work is not counted as the server's; its CPU time is reported apart.

CPU time per token of this program, client not included, says the same on a machine that others use too: `cpu_added_us` is the served
side's less the in-process side's.

Added latency: from the moment when the engine's thread hands over a step's news to that when the event loop has written the step's last chunk.

    python benchmarks/serve_speed.py --streams 32 --tokens 64 --rounds 3
"""

import argparse
import asyncio
import datetime
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from lib.rows import append

import ponder
from ponder.catalogue import open_model
from ponder.core.asks import Prompt, Sampling
from ponder.core.budget import Budget
from ponder.infer.sample import Sample
from ponder.run.driver import Driver, Job
from ponder.run.events import Finished, Grown
from ponder.run.recipe import Recipe
from ponder.serve.app import App, Site
from ponder.serve.desk import Desk, Limits
from ponder.serve.menu import Menu
from ponder.serve.server import SWITCH_SECONDS, Server, bind, configured

CLIENT = Path(__file__).parent / "lib" / "streams_client.py"


def jobs_of(num: int, tokens: int, bias: tuple[tuple[int, float], ...]) -> list[Job]:
    strategy = Sample(sampling=Sampling(logit_bias=bias))
    prompts = [Prompt(messages=(("user", f"Write a story about the number {i}."),), max_tokens=tokens) for i in range(num)]
    return [Job(id=str(i), prompt=p, recipe=Recipe(label="sample", strategy=strategy, budget=Budget()), seed=i) for i, p in enumerate(prompts)]


def in_process(process, num: int, tokens: int, bias) -> tuple[float, int, float]:
    """(seconds, generated tokens, CPU seconds of this program)."""
    process.drop_cache()
    driver = Driver(process, max_jobs=num)
    start, cpu = time.perf_counter(), time.process_time()
    for job in jobs_of(num, tokens, bias):
        driver.submit(job)
    generated = 0
    while driver.active or driver.todo:
        generated += sum(e.result.cost.generated_tokens for e in driver.turn() if isinstance(e, Finished))
    return time.perf_counter() - start, generated, time.process_time() - cpu


class Timed(Desk):
    """Notes how long news are under way from the engine's thread until all of them are written, once for every token."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.delays: list[float] = []

    def _tell(self, news) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._timed, news, time.perf_counter())

    def _timed(self, news, told: float) -> None:
        self._told(news)
        note = lambda: self.delays.extend([time.perf_counter() - told] * len(news))
        if all(isinstance(event, Grown) for event in news):
            note()
        else:  # the requests' tasks write beginnings and ends, in the loop's next turns
            self.loop.call_soon(self.loop.call_soon, self.loop.call_soon, note)


def served(process, num: int, tokens: int, bias) -> tuple[float, int, float, float, list[float]]:
    """(seconds, generated tokens, CPU seconds of this program, of the client, seconds added to each token)."""
    process.drop_cache()
    app = App(lambda: Driver(process), Menu(model="m", max_tokens=tokens), Limits(max_jobs=num), Site())
    app.desk = Timed(lambda: Driver(process), Limits(max_jobs=num), app.metrics)
    listening = bind("127.0.0.1", 0)
    server = Server(configured(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": f"Write a story about the number {i}."}], "max_tokens": tokens, "seed": i,
         "stream": True, "logit_bias": {str(t): b for t, b in bias}} for i in range(num)
    ]  # fmt: skip
    command = [sys.executable, "-S", str(CLIENT), str(listening.getsockname()[1]), "/v1/chat/completions"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(json.dumps(bodies) + "\n")
    client.stdin.flush()
    assert client.stdout.readline() == "ready\n"
    cpu = time.process_time()
    client.stdin.write("go\n")
    client.stdin.flush()
    told = json.loads(client.stdout.readline())
    generated = app.desk.driver.ledger.engine.generated_tokens
    cpu, delays = time.process_time() - cpu, app.desk.delays
    client.wait(10)
    server.should_exit = True
    thread.join()
    assert generated == num * tokens and told["events"] >= generated, (told, generated)
    return told["seconds"], generated, cpu, told["cpu_seconds"], delays


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    process = open_model(ponder.pull(args.model), threads=args.threads)
    bias = tuple((token, -100.0) for token in sorted(process.tokenizer.eos_ids))  # every answer is as long as the others
    in_process(process, args.streams, 4, bias)
    alone, behind, cpus, client, delays = [], [], ([], []), [], []
    for _ in range(args.rounds):
        seconds, generated, cpu = in_process(process, args.streams, args.tokens, bias)
        alone.append(generated / seconds)
        cpus[0].append(1e3 * cpu / generated)
        seconds, generated, cpu, theirs, told = served(process, args.streams, args.tokens, bias)
        behind.append(generated / seconds)
        cpus[1].append(1e3 * cpu / generated)
        client.append(1e3 * theirs / generated)
        delays += told
    costs = statistics.median(cpus[0]), statistics.median(cpus[1])
    rates = statistics.median(alone), statistics.median(behind)
    row = {
        "benchmark": "serve_speed", "model": args.model, "streams": args.streams, "tokens": args.tokens, "rounds": args.rounds,
        "in_process": round(rates[0], 1), "served": round(rates[1], 1), "overhead": round(1 - rates[1] / rates[0], 4),
        "overheads": [round(1 - b / a, 4) for a, b in zip(alone, behind)],
        "all_in_process": [round(x, 1) for x in alone], "all_served": [round(x, 1) for x in behind],
        "cpu_ms_in_process": round(costs[0], 4), "cpu_ms_served": round(costs[1], 4), "cpu_overhead": round(costs[1] / costs[0] - 1, 4),
        "cpu_added_us": round(1e3 * statistics.median(b - a for a, b in zip(*cpus)), 1), "client_cpu_us": round(1e3 * statistics.median(client), 1),
        "added_ms_p50": round(1e3 * statistics.median(delays), 3), "added_ms_p99": round(1e3 * statistics.quantiles(delays, n=100)[-1], 3),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2),
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    append("serve", row)


if __name__ == "__main__":
    main()
