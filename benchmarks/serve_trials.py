"""Random trials of a server with the real engine: valid requests, clients that leave at a random moment, bodies that are no good.

Counts responses of 500 and more, requests that hang, work and pages that are left at the end, and valid requests without an answer.

    python benchmarks/serve_trials.py --num 400
"""

import argparse
import asyncio
import datetime
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from lib.rows import append

import ponder
from ponder.catalogue import STRATEGIES, open_model
from ponder.core.budget import Budget
from ponder.run.driver import Driver
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import Server, bind, configured

PATH = "/v1/chat/completions"
BROKEN = (
    {"n": -1}, {"n": 10**30}, {"max_tokens": 0}, {"temperature": "x"}, {"messages": []}, {"messages": 3}, {"stop": [""]}, {"tools": [1]}, {"x": 1},
    {"model": "other"}, {"ponder": {"strategy": "best_of_n:num=1e9"}}, {"ponder": {"budget": "0 s"}}, {"logit_bias": {"9999999": 1}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}},
)  # fmt: skip


def trial(client: httpx.Client, number: int) -> str:
    """What came of one: "answered", "refused", "left", "busy", or what is wrong."""
    draw = random.Random(number)
    strategy = draw.choice(list(STRATEGIES))
    body = {"model": f"m@{strategy}", "messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": draw.randint(1, 24), "seed": number,
            "stream": draw.random() < 0.5, "ponder": {"budget": "1500 tokens"}}  # fmt: skip
    kind = draw.choice(("valid", "leaves", "leaves", "broken"))
    try:
        if kind == "leaves":
            with client.stream("POST", PATH, json=body | {"stream": True}, timeout=httpx.Timeout(60, read=draw.uniform(0.01, 3))) as response:
                lines = response.iter_lines()
                for _ in range(draw.randint(0, 12)):
                    next(lines, None)
            return "left" if response.status_code < 500 else f"status {response.status_code}"
        response = client.post(PATH, json=body | (draw.choice(BROKEN) if kind == "broken" else {}))
    except httpx.ReadTimeout:
        return "left" if kind == "leaves" else "hangs"
    if response.status_code >= 500:
        return f"status {response.status_code}"
    if kind == "broken":
        return "refused" if response.status_code in (400, 404) else f"broken body: {response.status_code}"
    return "answered" if response.status_code == 200 else "busy" if response.status_code == 429 else f"valid: {response.text[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    process = open_model(ponder.pull(args.model), threads=args.threads)
    app = App(lambda: Driver(process), Menu(model="m", most=Budget(tokens=2000, seconds=120)), Limits(max_jobs=12), Site())
    listening = bind("127.0.0.1", 0)
    server = Server(configured(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=180) as client, ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(lambda i: trial(client, i), range(args.num)))
        end = time.monotonic() + 60
        while (process.jobs or app.desk.running or len(app.desk.lines)) and time.monotonic() < end:
            time.sleep(0.05)
        left = len(process.jobs) + len(app.desk.running) + len(app.desk.lines)
    server.should_exit = True
    thread.join()
    process.drop_cache()
    row = {
        "benchmark": "serve_trials", "model": args.model, "num": args.num, "found": dict(found), "work_left": left,
        "pages_left": int(process.pool.num_used),
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    append("serve", row)


if __name__ == "__main__":
    main()
