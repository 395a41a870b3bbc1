"""Drafters beside plain decoding on the same prompts, one sequence, one thread: accepted tokens a round, and CPU time.

Every setting is DRAFTER[/ACCEPTOR[/LENGTH]]. A round is a step that gave tokens; prompts are read before the clock starts. Settings and
plain decoding take turns, prompt by prompt. One row a setting in benchmarks/results/draft_passes.jsonl.

`python benchmarks/draft_passes.py --draft SPEC --draft SPEC ... [--model NAME] [--n 6] [--new 48]`
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from lib.rows import append

import ponder
from ponder.core.accelerations import Accelerations
from ponder.core.asks import GREEDY, Extend, Extension, Prefix, Prompt, chat
from ponder.engine.process import LocalProcess
from ponder.testing.prompts import varied_prompts

CODE = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Python function that counts the words of a text and returns a dictionary.",
    "Explain in three sentences what a hash table is.",
    "Write a SQL query that lists the ten customers with the most orders.",
)


@dataclass
class Tally:
    """What a setting did with all prompts."""

    process: LocalProcess
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    rounds: int = 0
    seconds: list[float] = field(default_factory=list)

    def answer(self, prompt: Prompt) -> None:
        """Reads the prompt with an answer of one token, then decodes by the clock."""
        run(self.process, Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY, max_tokens=1))
        start = time.process_time()
        said, steps = run(self.process, Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY))
        self.seconds.append((time.process_time() - start) / len(said.prefix.tokens))
        self.tokens.append(said.prefix.tokens)
        self.rounds += steps


def run(process: LocalProcess, ask: Extend) -> tuple[Extension, int]:
    """The answer, and the steps that it took."""
    process.add(ask)
    for steps in range(1, 10_000):
        for _, answer in process.step():
            assert isinstance(answer, Extension)
            return answer, steps
    raise AssertionError("no answer in 10,000 steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", action="append", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--code", action="store_true", help="four fixed prompts for coders instead of varied ones")
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--new", type=int, default=48)
    args = parser.parse_args()
    path: Path = ponder.pull(args.model)
    prompts = [chat(text, max_tokens=args.new) for text in CODE[: args.n]] if args.code else varied_prompts(args.n, max_tokens=args.new)
    tallies = {
        draft: Tally(ponder.open_model(path, args.weights, threads=1, accelerations=Accelerations(draft=draft))) for draft in (None, *args.draft)
    }
    for prompt in prompts:
        for tally in tallies.values():
            tally.answer(prompt)
    plain = tallies[None]
    for draft, tally in tallies.items():
        total = tally.process.totals
        append(
            "draft_passes",
            {
                "model": args.model, "weights": args.weights, "draft": draft, "n": len(prompts), "new": args.new, "threads": 1,
                "prompts": "code" if args.code else "varied", "equal": sum(a == b for a, b in zip(tally.tokens, plain.tokens, strict=True)),
                "rounds": tally.rounds, "drafted": total.drafted_tokens, "accepted": total.accepted_tokens,
                "accepted_a_round": round(total.accepted_tokens / tally.rounds, 3),
                "ms_a_token": round(1000 * statistics.fmean(tally.seconds), 2),
                "speed_up": round(statistics.median(a / b for a, b in zip(plain.seconds, tally.seconds, strict=True)), 3),
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
