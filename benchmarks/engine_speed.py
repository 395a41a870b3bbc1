"""Decoding speed of the engine beside llama.cpp on the same file, in one run, taking turns.

Three cases: one sequence, 16 sequences of 16 prompts, 16 sequences of one prompt. Every round measures every engine on every
case once, each in a process of its own, because the waiting threads of one engine slow the other down; the figures are
medians over rounds, in tokens generated per second of wall time, prompts included.

    python benchmarks/engine_speed.py --rounds 5 --threads 2

Needs the extra `bench` (xllamacpp). Appends one row per case and format to benchmarks/results/engine_speed.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xllamacpp
from lib.rows import append

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8 import Int8Head
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.core.formats import WeightFormat
from ponder.engine.process import LocalProcess
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import load
from ponder.models.fetch import pull
from ponder.models.tokenizer import TextTokenizer, open_tokenizer

TOPICS = (
    "a dog", "the sea", "a lost key", "two sisters", "an old clock", "the moon", "a baker", "winter", "a train", "a garden", "a fox", "a painter",
    "the desert", "a lighthouse", "a small robot", "a violin",
)  # fmt: skip
TARGETS = {"one": 0.7, "16 prompts": 1.2, "16 of one prompt": 1.2}
Generate = Callable[[list[str], int], int]  # (questions, tokens each) -> tokens generated


def cases(round_number: int) -> dict[str, list[str]]:
    """Questions of each case; new ones every round, so that no cache has seen them."""
    new = [f"Write a long story about {topic}, part {round_number}." for topic in TOPICS]
    return {"one": new[:1], "16 prompts": [q + " Begin at once." for q in new], "16 of one prompt": [new[1] + " Take your time."] * 16}


def ponder_engine(path: Path, tokenizer: TextTokenizer, weights: WeightFormat, head: WeightFormat) -> Generate:
    process = LocalProcess(load(open_checkpoint(path), weights, head), tokenizer, Sarathi())

    def generate(questions: list[str], num_tokens: int) -> int:
        for seed, question in enumerate(questions):
            process.add(Extend(prefix=Prefix(chat(question, max_tokens=num_tokens)), seed=seed, sampling=Sampling(temperature=0.8)))
        before = process.totals.generated_tokens
        while process.jobs:
            process.step()
        return process.totals.generated_tokens - before

    return generate


def llama_engine(path: Path, tokenizer: TextTokenizer, threads: int) -> Generate:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(path), 16, 16 * 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def one(question: str, seed: int, num_tokens: int) -> int:
        prompt = tokenizer.render((("user", question),))
        request = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0.8, "seed": seed, "cache_prompt": True}
        return int(server.handle_completions(request)["usage"]["completion_tokens"])

    def generate(questions: list[str], num_tokens: int) -> int:
        with ThreadPoolExecutor(len(questions)) as pool:
            return sum(pool.map(one, questions, range(len(questions)), [num_tokens] * len(questions)))

    return generate


def speed(generate: Generate, questions: list[str], num_tokens: int) -> float:
    start = time.perf_counter()
    return generate(questions, num_tokens) / (time.perf_counter() - start)


def report(measured: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> None:
    print(f"{'case':<18} {'engine':<12} {'tokens/s':>9} {'ratio':>6}  (median of {args.rounds}; ratio: median of the rounds' ratios to llama.cpp)")
    for case, by_engine in measured.items():
        peer = by_engine["llama.cpp"]
        for engine, ours in by_engine.items():
            ratios = [a / b for a, b in zip(ours, peer)]
            print(f"{case:<18} {engine:<12} {statistics.median(ours):9.1f} {statistics.median(ratios):6.2f}")
            if engine != "llama.cpp":
                append("engine_speed", {
                    "recipe": f"smollm2-135m, {engine}, {case}, {args.tokens} tokens each", "n": args.rounds, "target": TARGETS[case],
                    "tokens_per_s": round(statistics.median(ours), 1), "peer": f"llama.cpp (xllamacpp {xllamacpp.__version__})",
                    "peer_tokens_per_s": round(statistics.median(peer), 1), "ratio": round(statistics.median(ratios), 3),
                    "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)], "load": round(os.getloadavg()[0], 1),
                })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--engine", help="measure this one once, in this process, and print JSON")
    parser.add_argument("--round", type=int, default=0)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(measure_once(args)))
        return
    measured: dict[str, dict[str, list[float]]] = {case: {name: [] for name in ENGINES} for case in TARGETS}
    for round_number in range(args.rounds):
        for name in ENGINES:
            for case, figure in in_own_process(name, round_number, args).items():
                measured[case][name].append(figure)
    report(measured, args)


def measure_once(args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of every case, after a warm-up on other questions."""
    torch.set_num_threads(args.threads)
    path = pull("smollm2-135m")
    generate = ENGINES[args.engine](path, open_tokenizer(path), args.threads)
    for questions in cases(-1).values():
        speed(generate, questions, args.tokens)
    return {case: speed(generate, questions, args.tokens) for case, questions in cases(args.round).items()}


def in_own_process(name: str, round_number: int, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--engine", name, "--round", str(round_number), "--threads", str(args.threads), "--tokens", str(args.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


ENGINES: dict[str, Callable[[Path, TextTokenizer, int], Generate]] = {
    "llama.cpp": llama_engine,
    "int4": lambda path, tokenizer, threads: ponder_engine(path, tokenizer, Int4(), Int8Head()),
    "bf16": lambda path, tokenizer, threads: ponder_engine(path, tokenizer, Bf16(), Bf16Head()),
}


if __name__ == "__main__":
    main()
