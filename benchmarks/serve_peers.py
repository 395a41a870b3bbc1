"""Chat streams at once: tokens per second of `ponder serve`, of llama.cpp's own server, and of a loop over OpenVINO GenAI's continuous batching.

The same GGUF file and questions, and for the servers the same client. Round after round, the engines in turn, each stopped (SIGSTOP)
while another one works. A round asks all streams at once, each its own question, no answer ends before its most tokens. Tokens are those
of the replies' usage; seconds count until the last stream has ended. OpenVINO's loop has no server: it is handed token ids, reads tokens
as they come and makes no text of them, so the comparison favours it. (Its reader knows no Q5_0 blocks: peers/widen.py.)

    python benchmarks/serve_peers.py --streams 16 --tokens 128 --rounds 3 --peers PEERS/bin/python
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch
from its_hub_speed import HERE, Worker
from lib.rows import append
from peers.handle import Worker as Handle

from ponder.models.fetch import pull
from ponder.models.tokenizer import TextTokenizer, open_model

QUESTION = "Write a long story about the number {}."


class Ours:
    """`ponder serve` as a program of its own."""

    def __init__(self, model: Path, threads: int, streams: int) -> None:
        command = [sys.executable, "-m", "ponder.cli", "serve", str(model), "--name", "m", "--port", "0", "--threads", str(threads)]
        paths = os.pathsep.join((str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")))
        self.process = subprocess.Popen(
            [*command, "--max-jobs", str(streams), "--max-per-key", str(2 * streams)], stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert self.process.stderr is not None
        self.said = next(word for line in self.process.stderr for word in line.split() if word.startswith("http://")).removesuffix("/v1")
        self.stop()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.go()
        os.killpg(self.process.pid, signal.SIGKILL)


async def stream(client: httpx.AsyncClient, url: str, number: int, tokens: int, unwanted: dict[str, float]) -> int:
    """Generated tokens of one streamed answer, by the reply's usage."""
    body = {
        "model": "m", "messages": [{"role": "user", "content": QUESTION.format(number)}], "max_tokens": tokens, "seed": number, "stream": True,
        "temperature": 0.8, "stream_options": {"include_usage": True}, "logit_bias": unwanted,
    }  # fmt: skip
    counted = 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{url}: {response.status_code} {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                counted = usage["completion_tokens"]
    return counted


async def one_round(url: str, numbers: range, tokens: int, unwanted: dict[str, float]) -> tuple[int, float]:
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        counts = await asyncio.gather(*(stream(client, url, number, tokens, unwanted) for number in numbers))
        return sum(counts), time.perf_counter() - start


class Loop:
    """OpenVINO GenAI's continuous batching, stepped by a worker (peers.serve)."""

    def __init__(self, python: str, model: Path, threads: int, log: Path) -> None:
        self.worker = Handle("openvino", str(Path(python).absolute()), log, {})  # its folder is another one
        self.worker.begin(120)
        self.opened = self.worker.ask({"do": "load", "path": str(model), "threads": threads, "option": ""}, 600)

    def round(self, tokenizer: TextTokenizer, numbers: range, tokens: int) -> tuple[int, float]:
        prompts = [{"text": "", "ids": tokenizer.render((("user", QUESTION.format(number)),))} for number in numbers]
        work = {"kind": "streams", "prompts": prompts, "new": [tokens] * len(prompts), "temperature": 0.8, "seed": numbers[0]}
        made = self.worker.ask({"do": "run", "work": work}, 600)
        return sum(made["counts"]), made["seconds"]


def compared(speeds: dict[str, list[float]]) -> dict[str, object]:
    """Ratios of ours to each other's speed, round by round."""
    found: dict[str, object] = {}
    for name in speeds:
        if name != "ponder":
            ratios = [mine / other for mine, other in zip(speeds["ponder"], speeds[name], strict=True)]
            found[name] = {"median": round(statistics.median(ratios), 2), "all": [round(r, 2) for r in ratios]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="Python that has xllamacpp and openvino_genai")
    parser.add_argument("--name", default="qwen2.5-coder-0.5b")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    model = pull(args.name)
    _, tokenizer = open_model(model)
    unwanted = {str(token): -100.0 for token in sorted(tokenizer.eos_ids)}
    file, context = str(HERE / "peers" / "llama_server.py"), str(args.streams * 1024)
    theirs = Worker(args.peers, file, str(model), "--slots", str(args.streams), "--context", context, "--threads", str(args.threads), is_ready=True)
    ours = Ours(model, args.threads, args.streams)
    loop = Loop(args.peers, model, args.threads, Path(tempfile.gettempdir()) / "serve_peers-openvino.log")
    names = ("ponder", "llama.cpp", "openvino")
    speeds: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[int]] = {name: [] for name in names}
    try:
        for number in range(args.rounds + 1):  # the first warms all
            for name in names:
                numbers, most = range(number * args.streams, (number + 1) * args.streams), args.tokens if number else 8
                if name == "openvino":
                    made, seconds = loop.round(tokenizer, numbers, most)
                else:
                    server = ours if name == "ponder" else theirs
                    server.go()
                    made, seconds = asyncio.run(one_round(server.said, numbers, most, unwanted))
                    server.stop()
                if number:
                    speeds[name].append(round(made / seconds, 1))
                    tokens[name].append(made)
                    print(name, speeds[name][-1], file=sys.stderr)
    finally:
        ours.end()
        theirs.end()
        loop.worker.kill()
    append("serve_peers", {
        "what": f"{args.streams} chat streams at once", "model": args.name, "tokens": tokens, "tokens_per_second": speeds, "threads": args.threads,
        "ponder_over": compared(speeds), "openvino": {key: loop.opened[key] for key in ("setting", "versions")}, "load": round(os.getloadavg()[0], 2),
    })  # fmt: skip


if __name__ == "__main__":
    main()
