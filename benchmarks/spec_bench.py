"""Speculation by category of question, beside plain decoding and beside peers' own, taking turns in one run.

    python benchmarks/spec_bench.py                                        # short: some 6 minutes on two quiet cores
    python benchmarks/spec_bench.py --num 8 --rounds 5 --minutes 60        # long
    python benchmarks/spec_bench.py --temperature 0.8 --acceptors coupled,rejection,typical --drafters ngram,token_recycling
    python benchmarks/spec_bench.py --write-lessons FILE.jsonl             # prompts for `ponder train-heads --prompts FILE.jsonl`

For every category and number of sequences: the prompts are read once, then each setting answers them, round after round, plain decoding
among them; a speed-up is that of the same round. Drafters begin each turn anew; those of scope session with what they learned from
other questions. Rows go to benchmarks/results/speculation.jsonl, `python -m speculation.page` (in
benchmarks/) makes docs/speculation.md of them. Speeds count CPU time with --cpu, for a machine that others use, too.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lib import rows as evidence
from speculation.ours import Ours, Turn
from speculation.peers import Peers
from speculation.questions import CATEGORIES, KEPT_BACK, Question, lessons, questions

import ponder
from ponder import catalogue
from ponder.accelerate.draft.copyspec import CopySpec
from ponder.accelerate.draft.first import First
from ponder.accelerate.length.fixed import Fixed
from ponder.core.asks import Prompt, Sampling
from ponder.core.draft import Drafter, Drafting

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain"
FIRST_TURN = 96  # tokens of the answer that a follow-up is about
WIDTHS = (1, 2, 3, 5, 9, 17)
NUM_WARM = 3  # questions of each category that drafters of scope session have heard before


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--num", type=int, default=2, help="questions of each category that are answered one at a time")
    parser.add_argument("--sequences", default="1,8", help="how many are answered at once")
    parser.add_argument("--new", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=6.0, help="no new turn after this long")
    parser.add_argument(
        "--drafters", default="ngram;copyspec;trie;token_recycling;token_recycling:over=session;copy_or_recycle", help="specs, ; between"
    )
    parser.add_argument("--heads", type=Path, help="medusa heads too: a file that `ponder train-heads` wrote for this model")
    parser.add_argument("--acceptors", default="coupled")
    parser.add_argument("--controls", default="expected", help="length controls, NAME or NAME:field=value")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--python", type=os.path.abspath, help="interpreter that has the peers; without it none is measured")
    parser.add_argument("--cpu", action="store_true", help="compare CPU time, not the clock's; for ours alone")
    parser.add_argument("--rows", default="speculation", help="file of benchmarks/results that rows go to; the page is made of speculation")
    parser.add_argument("--write-lessons", type=Path, help="write prompts to train heads on, 60 of each category, and stop")
    return parser.parse_args()


def drafters_of(args: argparse.Namespace) -> dict[str, Drafter]:
    found: dict[str, Drafter] = dict(catalogue.DRAFT_SPECS[0].read_many(args.drafters))
    if args.heads is not None:
        heads = catalogue.open_drafter(args.heads)
        found |= {"medusa": heads, "copy_or_medusa": First(drafters=(CopySpec(), heads))}
    return found


class Bench:
    """One run. settings: name -> (drafter or None, acceptor's name, control's name)."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start = args, time.monotonic()
        self.ours = Ours(catalogue.open_model(Path(ponder.pull(args.model)), args.weights, args.threads))
        self.settings: dict[str, tuple[Drafter | None, str, str]] = {PLAIN: (None, "coupled", "fixed")}
        for name, drafter in drafters_of(args).items():
            for acceptor in args.acceptors.split(","):
                for control in args.controls.split(","):
                    self.settings[f"{name} / {acceptor} / {control}"] = (drafter, acceptor, control)
        self.peers = Peers(Path(ponder.pull(args.model)), args.python, args.threads, ROOT / "out/bench")
        self.sampling = Sampling(temperature=args.temperature)
        self.learned = {name: self.warmed(setting[0]) for name, setting in self.settings.items() if setting[0] is not None}
        self.rows: list[dict[str, object]] = []

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.start > 60 * self.args.minutes

    def units(self) -> Iterator[tuple[str, int, list[list[Prompt]]]]:
        """(category, sequences at once, groups of prompts)."""
        sequences = [int(n) for n in self.args.sequences.split(",")]
        for category in self.args.categories.split(","):
            found = self.prompts(questions(category, max(self.args.num, *sequences)))
            for num in sequences:
                yield category, num, [[p] for p in found[: self.args.num]] if num == 1 else [found[:num]]

    def warmed(self, drafter: Drafter) -> Drafting | None:
        """What a drafter of scope session has learned from NUM_WARM questions of each category, which are not measured; else None."""
        if drafter.scope != "session":
            return None
        asked = [q for name in CATEGORIES if name != "followup" for q in questions(name, KEPT_BACK)[-NUM_WARM:]]
        prompts = [Prompt(messages=q.messages, max_tokens=self.args.new) for q in asked]
        return self.ours.learned(drafter, catalogue.ACCEPTORS["coupled"], catalogue.LENGTHS["fixed"], prompts)

    def prompts(self, found: Sequence[Question]) -> list[Prompt]:
        first = [q for q in found if q.change]
        if first:  # the model's own answer becomes a part of the question
            turn = self.turn(PLAIN, [Prompt(messages=q.messages, max_tokens=FIRST_TURN) for q in first], Sampling(temperature=0.0))
            answers = dict(zip((q.id for q in first), turn.texts, strict=True))
            found = [q.second_turn(answers[q.id]) if q.change else q for q in found]
        return [Prompt(messages=q.messages, max_tokens=self.args.new) for q in found]

    def turn(self, name: str, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> Turn:
        drafter, acceptor, control = self.settings[name]
        learned = self.learned.get(name)
        tally = self.ours.use(drafter, catalogue.ACCEPTORS[acceptor], catalogue.DRAFT_SPECS[2].read(control), learned=learned)
        return self.ours.answer(prompts, sampling or self.sampling, tally)

    def measure(self) -> None:
        self.note({"kind": "width", "seconds": self.widths()})
        for category, num, groups in self.units():
            if self.is_over:
                print(f"out of time before {category}, {num} at once", file=sys.stderr)
                continue
            turns: dict[str, list[list[Turn]]] = {name: [] for name in self.settings}
            for group in groups:
                self.turn(PLAIN, group)  # reads the prompts, and wakes everything
            for at in range(self.args.rounds):
                order = random.Random(at).sample(list(self.settings), len(self.settings))
                for name in order:
                    turns[name].append([self.turn(name, group) for group in groups])
            for name, found in turns.items():
                self.note({"kind": "ours", "category": category, "num": num, "setting": name} | self.figures(found, turns[PLAIN]))
            self.measure_peers(category, num, groups)

    def figures(self, found: Sequence[Sequence[Turn]], plain: Sequence[Sequence[Turn]]) -> dict[str, object]:
        """Of one setting in one category: speed-up over plain round by round, and what its rounds came to."""
        ratios = [speed(a, self.args.cpu) / speed(b, self.args.cpu) for a, b in zip(found, plain, strict=True)]
        turns = [turn for row in found for turn in row]
        rounds, drafted, accepted, drafting = (
            sum(getattr(t.tally, name) for t in turns) for name in ("rounds", "drafted", "accepted", "draft_seconds")
        )
        each = max(1, rounds)
        return {
            "tokens_per_s": rounded(statistics.median(speed(row, self.args.cpu) for row in found)),
            "speed_up": rounded(statistics.median(ratios)), "speed_ups": [rounded(r) for r in ratios],
            "rounds": rounds, "accepted_per_round": rounded(accepted / each), "drafted_per_round": rounded(drafted / each),
            "wasted_per_round": rounded((drafted - accepted) / each), "draft_ms_per_round": rounded(1e3 * drafting / each),
            "tokens": sum(t.num_tokens for t in found[0]), "same_as_plain": [t.tokens for t in found[0]] == [t.tokens for t in plain[0]],
        }  # fmt: skip

    def measure_peers(self, category: str, num: int, groups: Sequence[Sequence[Prompt]]) -> None:
        """One turn of each peer's settings; at temperature 0 only, and not where CPU time counts."""
        if self.args.temperature or self.args.cpu:
            return
        tokenizer = self.ours.process.tokenizer
        ids = [[tokenizer.render(p.messages, p.prefill) for p in group] for group in groups]
        for row in self.peers.turns(ids, self.args.new, sorted(tokenizer.eos_ids), lambda: self.is_over):
            self.note({"kind": "peer", "category": category, "num": num} | row)

    def widths(self) -> dict[str, float]:
        """CPU seconds of a step by its rows, as a multiple of one row's; least of three."""
        prompt = Prompt(messages=(("user", "Tell a long story about a river."),), max_tokens=24)
        control = catalogue.LENGTHS["fixed"]
        many = Fixed(num=max(WIDTHS)) if hasattr(control, "num") else control
        found = [self.ours.cost_of_width(prompt, WIDTHS, catalogue.ACCEPTORS["coupled"], many) for _ in range(3)]
        least = {width: min(f[width] for f in found) for width in WIDTHS}
        return {str(width): rounded(least[width] / least[1]) for width in WIDTHS}

    def note(self, row: Mapping[str, object]) -> None:
        self.rows.append(dict(row))
        print(json.dumps(row), file=sys.stderr, flush=True)


def speed(turns: Sequence[Turn], is_cpu: bool) -> float:
    """Tokens a second of all prompts of a round, after their first."""
    return sum(t.num_after for t in turns) / sum(t.cpu if is_cpu else t.seconds for t in turns)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> int:
    args = arguments()
    if args.write_lessons is not None:
        args.write_lessons.write_text("".join(json.dumps(text) + "\n" for text in lessons(60)), encoding="utf-8")
        return 0
    bench = Bench(args)
    try:
        bench.measure()
    finally:
        bench.peers.close()
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    same = {"run": run, "model": args.model, "weights": args.weights, "threads": args.threads, "temperature": args.temperature, "new": args.new,
            "clock": "cpu" if args.cpu else "wall", "load": rounded(os.getloadavg()[0])}  # fmt: skip
    for row in bench.rows:
        evidence.append(args.rows, row | same)
    return 0


if __name__ == "__main__":
    sys.exit(main())
