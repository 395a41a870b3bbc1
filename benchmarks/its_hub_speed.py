"""Wall clock of best-of-N by vote on GSM8K: ponder, its_hub over llama.cpp's server, a loop of transformers' generate.

    python benchmarks/its_hub_speed.py --problems 50 --clients CLIENTS/bin/python --peers PEERS/bin/python

The same GGUF file, temperature, most tokens and threads; problem after problem, the engines in turn, each stopped (SIGSTOP) while
another one runs. Samples differ, so tokens are counted too, and both ratios are given: of seconds, and of tokens per second.
transformers is run on fewer problems (--loop-problems); its seconds per problem are compared on those alone.
Part two: --crowd problems at once, each a best-of-8, ponder's driver against its_hub over the same server. That part alone, a few minutes:

    python benchmarks/its_hub_speed.py --problems 0 --crowds 1 --max-tokens 128 --slots 64 --clients CLIENTS/bin/python --peers PEERS/bin/python

CLIENTS has its_hub, PEERS has xllamacpp and transformers. Rows: benchmarks/results/its_hub.jsonl.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lib.rows import append

from ponder import catalogue
from ponder.core.asks import Sampling
from ponder.core.budget import Budget
from ponder.core.rng import hash_seed
from ponder.engine.process import LocalProcess
from ponder.infer.self_consistency import SelfConsistency
from ponder.models.fetch import pull
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.tasks.task import Item
from ponder.verify.answers import Number

HERE = Path(__file__).resolve().parent
TEMPERATURE = 0.8


class Worker:
    """A process that answers JSON lines, and is stopped while it does not run."""

    def __init__(self, *command: str, is_ready: bool) -> None:
        paths = os.pathsep.join((str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")))
        log = Path("out") / f"its_hub-{Path(command[1]).stem}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )  # fmt: skip
        self.said = self._line() if is_ready else ""
        self.stop()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}; its words are in out/its_hub-*.log")
        return line.strip()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def ask(self, order: dict) -> dict:
        self.go()
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self._line())
        self.stop()
        return reply

    def end(self) -> None:
        if self.process.poll() is not None:
            return
        self.go()
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def ours(process: LocalProcess, items: Sequence[Item], num: int, seed: int) -> dict:
    """All items at once, each a vote of `num` samples. The cache of prompts is dropped first, as for a new problem."""
    process.drop_cache()
    strategy = SelfConsistency(num=num, sampling=Sampling(temperature=TEMPERATURE))
    recipe = Recipe(label="self_consistency", strategy=strategy, budget=Budget())
    jobs = [Job(id=item.id, prompt=item.prompt, recipe=recipe, seed=hash_seed(seed, item.id)) for item in items]
    start = time.perf_counter()
    results = [result for _, result in Driver(process).run(jobs)]
    seconds = time.perf_counter() - start
    tokens = sum(r.cost.generated_tokens for r in results)
    return {"seconds": seconds, "tokens": tokens, "answers": [r.answer for r in results]}


def theirs(hub: Worker, server: Worker, items: Sequence[Item], num: int) -> dict:
    server.go()
    order = {
        "url": f"{server.said}/v1", "model": "gguf", "questions": [item.prompt.messages for item in items], "budget": num, "temperature": TEMPERATURE,
        "max_tokens": items[0].prompt.max_tokens,
    }  # fmt: skip
    reply = hub.ask(order)
    server.stop()
    return reply


def looped(worker: Worker, process: LocalProcess, item: Item, num: int, seed: int, *, is_batched: bool) -> dict:
    ids = process._prompt_ids(item.prompt)
    order = {
        "ids": list(ids), "num": num, "temperature": TEMPERATURE, "max_tokens": item.prompt.max_tokens, "seed": seed, "is_batched": is_batched,
        "eos": sorted(process.tokenizer.eos_ids),
    }  # fmt: skip
    reply = worker.ask(order)
    texts = [process.tokenizer.decode(row) for row in reply.pop("ids")]
    read = [answer for answer in map(Number().read, texts) if answer is not None]
    return reply | {"answers": [statistics.mode(read) if read else None]}


def ratios(mine: Sequence[dict], other: Sequence[dict]) -> dict[str, float]:
    """Medians over problems of theirs / ours: seconds, and seconds per token."""
    pairs = list(zip(mine, other, strict=True))
    return {
        "seconds": round(statistics.median(o["seconds"] / m["seconds"] for m, o in pairs), 3),
        "seconds_per_token": round(statistics.median((o["seconds"] / o["tokens"]) / (m["seconds"] / m["tokens"]) for m, o in pairs), 3),
    }


def figures(made: Sequence[dict], items: Sequence[Item], per: int = 1) -> dict[str, float]:
    task = catalogue.task("gsm8k")
    pairs = [(item, answer) for row, i in zip(made, range(0, len(items), per)) for item, answer in zip(items[i : i + per], row["answers"])]
    return {
        "seconds": round(statistics.median(row["seconds"] for row in made), 3),
        "tokens_per_second": round(sum(row["tokens"] for row in made) / sum(row["seconds"] for row in made), 1),
        "tokens": round(statistics.mean(row["tokens"] for row in made), 1),
        "right": round(sum(task.score(item, f"#### {answer}") for item, answer in pairs) / len(pairs), 3),
    }


def one_by_one(args: argparse.Namespace, process: LocalProcess, items: Sequence[Item], *, hub: Worker, server: Worker, loop: Worker | None) -> None:
    made: dict[str, list[dict]] = {"ponder": [], "its_hub": [], "batch": [], "loop": []}
    ours(process, items[:1], 2, seed=1)  # both warm
    theirs(hub, server, items[:1], 2)
    for number, item in enumerate(items):
        made["ponder"].append(ours(process, [item], args.samples, seed=args.seed))
        made["its_hub"].append(theirs(hub, server, [item], args.samples))
        if loop is not None and number < args.loop_problems:
            made["batch"].append(looped(loop, process, item, args.samples, args.seed, is_batched=True))
        if loop is not None and number < args.single_problems:
            made["loop"].append(looped(loop, process, item, args.samples, args.seed, is_batched=False))
        print(item.id, {name: round(rows[-1]["seconds"], 2) for name, rows in made.items() if len(rows) > number}, file=sys.stderr)
    rows = {name: figures(rows, items[: len(rows)]) | {"problems": len(rows)} for name, rows in made.items() if rows}
    against = {name: ratios(made["ponder"][: len(rows)], rows) for name, rows in made.items() if rows and name != "ponder"}
    append("its_hub", {"what": f"best of {args.samples} by vote, problem by problem", **about(args), "engines": rows, "others_over_ponder": against})


def crowd(args: argparse.Namespace, process: LocalProcess, items: Sequence[Item], hub: Worker, server: Worker) -> None:
    groups = [items[i : i + args.crowd] for i in range(0, len(items) - args.crowd + 1, args.crowd)][: args.crowds]
    mine, other = [], []
    for group in groups:
        mine.append(ours(process, group, 8, seed=args.seed))
        other.append(theirs(hub, server, group, 8))
        print("crowd", round(mine[-1]["seconds"], 2), round(other[-1]["seconds"], 2), file=sys.stderr)
    used = [item for group in groups for item in group]
    rows = {"ponder": figures(mine, used, args.crowd), "its_hub": figures(other, used, args.crowd)}
    what = f"{args.crowd} best-of-8 by vote at once"
    append("its_hub", {"what": what, **about(args), "engines": rows, "rounds": len(groups), "others_over_ponder": {"its_hub": ratios(mine, other)}})


def about(args: argparse.Namespace) -> dict[str, object]:
    return {
        "model": args.model.name,
        "weights": args.weights,
        "temperature": TEMPERATURE,
        "threads": args.threads,
        "seed": args.seed,
        "slots": args.slots,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", required=True, help="Python that has its_hub")
    parser.add_argument("--peers", required=True, help="Python that has xllamacpp and transformers")
    parser.add_argument("--name", default="qwen2.5-coder-0.5b")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--loop-problems", type=int, default=5, help="those on which generate runs, all samples in one call")
    parser.add_argument("--single-problems", type=int, default=0, help="those on which generate runs sample by sample")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--crowd", type=int, default=8)
    parser.add_argument("--crowds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end, too
    args.model = pull(args.name)
    items = catalogue.task(f"gsm8k:max_tokens={args.max_tokens}").items("test")[: max(args.problems, args.crowd * args.crowds)]
    process = catalogue.open_model(args.model, args.weights, args.threads)
    server_file, context = str(HERE / "peers" / "llama_server.py"), str(args.slots * 1024)
    server = Worker(
        args.peers, server_file, str(args.model), "--slots", str(args.slots), "--context", context, "--threads", str(args.threads), is_ready=True
    )
    hub = Worker(args.clients, str(HERE / "peers" / "its_hub_.py"), is_ready=False)
    workers, loop = [server, hub], None
    try:
        if args.problems:
            if max(args.loop_problems, args.single_problems):
                loop = Worker(args.peers, str(HERE / "peers" / "generate_loop.py"), str(args.model), str(args.threads), is_ready=True)
                workers.append(loop)
            one_by_one(args, process, items[: args.problems], hub=hub, server=server, loop=loop)
        if args.crowds:
            crowd(args, process, items, hub, server)
    finally:
        for worker in reversed(workers):  # clients before their server
            worker.end()


if __name__ == "__main__":
    main()
