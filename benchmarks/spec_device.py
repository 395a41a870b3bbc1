"""Speculation on a card, beside plain decoding there, taking turns in one run; and where a round's time goes.

    python benchmarks/spec_device.py --model MODEL --questions FILE.jsonl                   # a minute or two on a card
    python benchmarks/spec_device.py --model MODEL --questions FILE.jsonl --profile         # rounds taken apart, then the above
    python benchmarks/spec_device.py --write-questions FILE.jsonl                           # where task data is: the questions as one small file
    python benchmarks/spec_device.py --device cpu --model smollm2-135m --num 1 --new 12 --rounds 1 --categories edit   # rehearsal, nothing is kept

MODEL is a name of the catalogue or a file. Every setting answers the questions of a category one at a time (or --sequences at once), round
after round, plain decoding among them; a speed-up is tokens a second beside plain decoding's of the same round, prompts not counted, median
over rounds. Rows go to benchmarks/results/speculation_device.jsonl.
"""

import argparse
import functools
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lib.rows import append
from speculation.ours import Ours, Turn
from speculation.questions import CATEGORIES, Question, questions

import ponder
from ponder import catalogue
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.core.asks import GREEDY, Prompt, Sampling
from ponder.core.draft import Drafter
from ponder.engine.attend import Span
from ponder.engine.device_process import DeviceProcess
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import Settings
from ponder.engine.sampler import Draw
from ponder.models.decoder import load
from ponder.models.place import place
from ponder.models.tokenizer import open_model

PLAIN = "plain"
FIRST_TURN = 96  # tokens of the answer that a follow-up is about
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17)
CONTEXT = 600  # tokens before the rows of a step that is timed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name or a file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--questions", type=Path, help="a file that --write-questions wrote; else they are made of installed task data")
    parser.add_argument("--write-questions", type=Path)
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--num", type=int, default=4, help="questions of each category, one at a time")
    parser.add_argument("--sequences", default="1", help="how many are answered at once, commas between")
    parser.add_argument("--new", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0, help="no new category after this long")
    parser.add_argument("--drafters", default="ngram", help="specs of the catalogue, ; between")
    parser.add_argument("--controls", default="expected", help="length controls of the catalogue, commas between")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--profile", action="store_true", help="take steps and rounds apart first")
    parser.add_argument("--kernels", action="store_true", help="with --profile: which kernels the time of a step goes to")
    return parser.parse_args()


def opened(model: str, device: str) -> DeviceProcess:
    """The model on a card as it would be opened there; with device cpu the same code in plain PyTorch."""
    path = Path(model) if Path(model).exists() else Path(ponder.pull(model))
    if device != "cpu":
        process = catalogue.open_model(path, device=device)
        assert isinstance(process, DeviceProcess)
        return process
    checkpoint, tokenizer = open_model(path)
    where = torch.device("cpu")
    weights, head = DenseDevice(device=where, dtype=torch.float32), DenseDeviceHead(device=where, dtype=torch.float32)
    decoder = place(load(checkpoint, weights, head, torch.float32), weights, where)
    return DeviceProcess(decoder, tokenizer, Sarathi(), Settings(kv_bytes=1 << 28))


class Bench:
    """One run. settings: name -> (drafter or None, control's name)."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start = args, time.monotonic()
        self.process = opened(args.model, args.device)
        self.is_card = self.process.decoder.device.type == "cuda"
        self.card = torch.cuda.get_device_name() if self.is_card else "no card"
        self.ours = Ours(self.process)
        self.settings: dict[str, tuple[Drafter | None, str]] = {PLAIN: (None, "fixed")}
        for name, drafter in catalogue.DRAFT_SPECS[0].read_many(args.drafters).items():
            self.settings |= {f"{name} / coupled / {control}": (drafter, control) for control in args.controls.split(",")}
        self.found = read_questions(args.questions) if args.questions else {}
        self.sampling = GREEDY if not args.temperature else Sampling(temperature=args.temperature)

    def row(self, kind: str, **figures: object) -> None:
        row = {"kind": kind, "card": self.card, "model": Path(self.args.model).stem, "temperature": self.args.temperature, **figures}
        if self.is_card:
            append("speculation_device", row)
        else:
            print(f"rehearsal, not kept: {row}")

    def turn(self, name: str, prompts: Sequence[Prompt]) -> Turn:
        drafter, control = self.settings[name]
        tally = self.ours.use(drafter, catalogue.ACCEPTORS["coupled"], catalogue.LENGTHS[control])
        return self.ours.answer(prompts, self.sampling, tally)

    def prompts(self, category: str, num: int) -> list[Prompt]:
        """Of the first questions; what a follow-up is about is answered first."""
        found = self.found[category][:num] if self.found else questions(category, num)
        made = []
        for question in found:
            if question.change:
                turn = self.turn(PLAIN, [Prompt(messages=question.messages, max_tokens=FIRST_TURN)])
                question = question.second_turn(turn.texts[0])
            made.append(Prompt(messages=question.messages, max_tokens=self.args.new))
        return made

    def measure(self) -> None:
        """Rows by category, and means."""
        counts = [int(n) for n in self.args.sequences.split(",")]
        gains: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
        for num in counts:
            for category in self.args.categories.split(","):
                if time.monotonic() - self.start > 60 * self.args.minutes:
                    print(f"out of time before {category}, {num} at once", file=sys.stderr)
                    continue
                prompts = self.prompts(category, self.args.num if num == 1 else num)
                groups = [[p] for p in prompts] if num == 1 else [prompts]
                for name, figures in self.category(groups).items():
                    gains[num, name][category] = figures["speed_up"]
                    self.row("speed", category=category, sequences=num, setting=name, **figures)
        for (num, name), found in gains.items():
            if name != PLAIN and found:
                mean, worst = statistics.fmean(found.values()), min(found, key=found.__getitem__)
                self.row("mean", sequences=num, setting=name, mean=round(mean, 3), worst=round(found[worst], 3), worst_category=worst,
                         by_category={c: round(x, 3) for c, x in found.items()})  # fmt: skip

    def category(self, groups: Sequence[Sequence[Prompt]]) -> dict[str, dict[str, Any]]:
        turns: dict[str, list[list[Turn]]] = {name: [] for name in self.settings}
        for name in self.settings:
            for group in groups:
                self.turn(name, group)  # reads the prompts, records the shapes
        for at in range(self.args.rounds):
            for name in random.Random(at).sample(list(self.settings), len(self.settings)):
                turns[name].append([self.turn(name, group) for group in groups])
        return {name: self.figures(found, turns[PLAIN]) for name, found in turns.items()}

    def figures(self, found: Sequence[Sequence[Turn]], plain: Sequence[Sequence[Turn]]) -> dict[str, Any]:
        ratios = [speed(a) / speed(b) for a, b in zip(found, plain, strict=True)]
        tallies = [turn.tally for row in found for turn in row]
        rounds = max(1, sum(t.rounds for t in tallies))
        alike = [same_tokens(a.tokens, b.tokens) for row, other in zip(found, plain) for a, b in zip(row, other)]
        return {
            "tokens_per_s": round(statistics.median(speed(row) for row in found), 1), "speed_up": round(statistics.median(ratios), 4),
            "speed_ups": [round(r, 3) for r in ratios], "rounds": rounds, "tokens": sum(t.num_tokens for t in found[0]),
            "accepted_per_round": round(sum(t.accepted for t in tallies) / rounds, 3),
            "drafted_per_round": round(sum(t.drafted for t in tallies) / rounds, 3),
            "same_tokens": round(statistics.fmean(alike), 4),
        }  # fmt: skip


def speed(turns: Sequence[Turn]) -> float:
    """Tokens a second of all prompts of a round, after their first."""
    return sum(t.num_after for t in turns) / sum(t.seconds for t in turns)


def same_tokens(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Share of answers that are plain decoding's: on a card sums depend on shapes, and near ties fall otherwise."""
    return statistics.fmean(float(a == b) for a, b in zip(found, wanted, strict=True))


# where the time goes


def seconds_queued(run: Callable[[], object], num: int = 30) -> float:
    """Of a call that is queued many times without waiting."""
    run()
    sync()
    start = time.perf_counter()
    for _ in range(num):
        run()
    sync()
    return (time.perf_counter() - start) / num


def seconds_waited(run: Callable[[], object], num: int = 20) -> float:
    """Median of a call that begins and ends with the device idle."""
    found = []
    for _ in range(num):
        sync()
        start = time.perf_counter()
        run()
        sync()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Steps:
    """Steps of a chain of so many rows behind a context, taken apart."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.process = bench, bench.process

    @torch.inference_mode()
    def measure(self) -> None:
        process, context = self.process, CONTEXT if self.bench.is_card else 40
        pages = Pages(process.pool)
        assert pages.reserve(context + max(WIDTHS))
        process._forward([Span(pages, 0, context, context)], [i % 1000 for i in range(context)])
        pages.num_tokens = context
        one = 0.0
        for num in WIDTHS:
            spans, wishes = [Span(pages, context, context + num, context)], [Draw(0, i, GREEDY) for i in range(num)]
            tokens = list(range(100, 100 + num))
            start = time.perf_counter()
            hidden = process._forward(spans, tokens)
            process._draw(hidden, wishes)
            first = time.perf_counter() - start
            whole = seconds_waited(lambda spans=spans, tokens=tokens, wishes=wishes: process._draw(process._forward(spans, tokens), wishes))
            forward = seconds_waited(lambda spans=spans, tokens=tokens: process._forward(spans, tokens))
            shape, drawn = list(process.decode.shapes.values())[-1], list(process.draws.shapes.values())[-1]
            shape = process.decode.last if hasattr(process.decode, "last") else shape
            replay, draw = seconds_queued(shape.recording.run), seconds_queued(drawn.recording.run)
            one = one or replay + draw
            figures = {"first_ms": first, "step_ms": whole, "forward_ms": forward, "replay_forward_ms": replay, "replay_draw_ms": draw}
            self.bench.row(
                "step", rows=num, context=context, of_one=round((replay + draw) / one, 3), **{k: round(1e3 * x, 4) for k, x in figures.items()}
            )
            if self.bench.args.kernels and num in (1, 2, 5, 9):
                self.kernels(num, shape.recording.run)
        pages.release()

    def kernels(self, num: int, run: Callable[[], object]) -> None:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(4):
                run()
            sync()
        print(f"kernels of 4 forward passes of {num} rows:")
        print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=90))


TIMED = (  # (where from, name, label): what a step calls, inclusive of what that calls
    ("process", "step", "step"), ("process", "_next_spans", "1 next spans, with what follows"), ("rounds", "widen", "1.1 widen"),
    ("drafting", "propose", "1.1.1 propose"), ("rounds", "_lay", "1.1.2 lay"), ("process", "_forward", "2 forward, queued"),
    ("decode", "run", "2.1 of it decode.run"), ("process", "_draw", "3 draw, wait included"), ("process", "_look_ahead", "3.1 of it look-ahead"),
    ("rounds", "_accept", "4 accept"), ("process", "_close", "5 close"),
)  # fmt: skip


def taken_apart(bench: Bench, prompt: Prompt, name: str) -> None:
    """Milliseconds a step by part, of one answer: mean over steps, inclusive."""
    process, seconds, calls = bench.process, defaultdict[str, float](float), defaultdict[str, int](int)
    bench.turn(name, [prompt])
    drafter, control = bench.settings[name]
    tally = bench.ours.use(drafter, catalogue.ACCEPTORS["coupled"], catalogue.LENGTHS[control])
    owners = {"process": process, "rounds": process.rounds, "decode": process.decode, "drafting": getattr(process.rounds, "drafting", None)}
    for owner, attribute, label in TIMED:
        if hasattr(owners[owner], attribute):
            watch(owners[owner], attribute, label, seconds, calls)
    turn = bench.ours.answer([prompt], bench.sampling, tally)
    for owner, attribute, _ in TIMED:
        vars(owners[owner]).pop(attribute, None) if owners[owner] is not None else None
    steps = max(1, calls["step"])
    parts = {label: round(1e3 * seconds[label] / steps, 4) for label in dict.fromkeys(label for _, _, label in TIMED) if label in seconds}
    ahead = {"num_ahead": process.num_ahead, "num_met": process.num_met}
    bench.row("round", setting=name, steps=steps, tokens=turn.num_tokens, accepted=tally.accepted, drafted=tally.drafted, ms_of_a_step=parts, **ahead)


def watch(owner: Any, attribute: str, label: str, seconds: dict[str, float], calls: dict[str, int]) -> None:
    inner = getattr(owner, attribute)

    @functools.wraps(inner)
    def timed(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start
            calls[label] += 1

    setattr(owner, attribute, timed)


def profiled(bench: Bench) -> None:
    Steps(bench).measure()
    costs = bench.process.rounds.meter.costs()
    bench.row("costs", ms={str(num): round(1e3 * s, 4) for num, s in costs.seconds}, waiting_ms=round(1e3 * getattr(costs, "waiting", 0.0), 4))
    for category in ("edit", "math"):
        for name in bench.settings:
            taken_apart(bench, bench.prompts(category, 1)[0], name)


# questions as a file


def read_questions(path: Path) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = Question(category=row["category"], id=row["id"], messages=tuple(map(tuple, row["messages"])), change=row["change"])
        found[question.category].append(question)
    return found


def write_questions(path: Path, num: int) -> None:
    rows = [asdict(question) for category in CATEGORIES for question in questions(category, num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> int:
    args = arguments()
    if args.write_questions is not None:
        write_questions(args.write_questions, 32)
        return 0
    start = time.perf_counter()
    bench = Bench(args)
    print(f"opened in {time.perf_counter() - start:.1f} s on {bench.card}", flush=True)
    if args.profile:
        profiled(bench)
    bench.measure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
