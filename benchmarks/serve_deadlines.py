"""Whether a budget in seconds is kept at full load: N clients without one keep a server busy, others ask with budgets of 2 to 10 s.

A miss: the client has waited longer than its budget, measured at the client; `--slack` is added for the network and the client's own work.
A refusal (429) is counted apart.

The rate's interval is Wilson's, 95 %; with 400 requests and no miss it ends below 1 %.

    python benchmarks/serve_deadlines.py --num 400 --load 32 --side 32
"""

import argparse
import datetime
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from lib.rows import append

SPECS = ("sample", "best_of_n:num=4", "self_consistency:num=4", "particle_filter:num=4", "step_beam", "greedy")


def body(text: str, model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1000, **fields}


def keep_busy(client: httpx.Client, number: int, model: str, stop: threading.Event) -> None:
    at = 0
    while not stop.is_set():
        client.post("/v1/chat/completions", json=body(f"Tell story {at} of {number}.", model, max_tokens=200, seed=at))
        at += 1


def one(client: httpx.Client, number: int, model: str) -> tuple[float, float, int, str]:
    """(budget, seconds waited, status, why it stopped)."""
    draw = random.Random(number)
    budget = round(draw.uniform(2, 10), 2)
    asked = body(f"Explain the number {number} at length.", f"{model}@{SPECS[number % len(SPECS)]}", seed=number, ponder={"budget": f"{budget} s"})
    time.sleep(draw.uniform(0, 5))
    start = time.perf_counter()
    reply = client.post("/v1/chat/completions", json=asked)
    seconds = time.perf_counter() - start
    told = reply.json()
    return budget, seconds, reply.status_code, told["choices"][0]["ponder"]["stop_reason"] if reply.status_code == 200 else told["error"]["code"]


def wilson(num: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a rate."""
    rate, extra = num / of, z * z / of
    middle = (rate + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(rate * (1 - rate) / of + extra / (4 * of))
    return max(0.0, middle - half), middle + half


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--load", type=int, default=32)
    parser.add_argument("--side", type=int, default=32, help="clients with budgets at a time")
    parser.add_argument("--slack", type=float, default=0.05)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "ponder.cli", "serve", args.model, "--port", "0", "--max-jobs", str(args.load), "--drain", "0", *threads]
        server = subprocess.Popen(command, stderr=said, stdout=said, text=True)
        try:
            while " at http://" not in (text := _read(said)):
                if server.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.1)
            url, stop = text.partition(" at ")[2].partition("/v1")[0], threading.Event()
            with httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client, ThreadPoolExecutor(args.load) as busy:
                for number in range(args.load):
                    busy.submit(keep_busy, client, number, args.model, stop)
                time.sleep(3)
                with ThreadPoolExecutor(args.side) as pool:
                    found = list(pool.map(lambda i: one(client, i, args.model), range(args.num)))
                stop.set()
                server.terminate()
        finally:
            server.terminate()
            server.wait(30)
    over = [seconds - budget for budget, seconds, status, _ in found if status == 200]
    cut = [seconds - budget for budget, seconds, _, reason in found if reason == "seconds"]
    misses = sum(x > args.slack for x in over)
    row = {
        "benchmark": "serve_deadlines", "model": args.model, "num": args.num, "load": args.load, "side": args.side, "slack": args.slack,
        "answered": len(over), "refused": sum(status != 200 for _, _, status, _ in found), "misses": misses,
        "miss_rate": round(misses / len(over), 4), "miss_rate_95": [round(x, 4) for x in wilson(misses, len(over))],
        "cut": len(cut), "worst_over_ms": round(1e3 * max(over), 1),
        "median_over_ms": round(1e3 * statistics.median(cut), 1) if cut else None,
        "machine_load": round(os.getloadavg()[0], 2), "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    append("serve", row)


def _read(file) -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    main()
