"""A drafter against plain decoding on the same varied prompts: whether answers are equal bit for bit, and CPU time of one thread.

`python benchmarks/spec_equal.py --draft SPEC [--n 40] [--batch 1] [--model NAME]`
"""

import argparse
import time

from lib.rows import append

import ponder
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Extension, Prefix, Sampling
from ponder.engine.process import LocalProcess
from ponder.testing.prompts import varied_prompts
from ponder.testing.run import answer_turn


def answered(process: LocalProcess, asks: list[Extend], batch: int) -> tuple[list[Extension], float]:
    start, found = time.process_time(), []
    for at in range(0, len(asks), batch):
        found += [a for a in answer_turn(asks[at : at + batch], process) if isinstance(a, Extension)]
    return found, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    args = parser.parse_args()
    prompts = varied_prompts(args.n, max_tokens=48)
    asks = [Extend(prefix=Prefix(p), seed=i, sampling=Sampling(temperature=(0.0, 0.7, 1.0, 0.0)[i % 4])) for i, p in enumerate(prompts)]
    path = ponder.pull(args.model)
    plain, drafting = (ponder.open_model(path, threads=1, accelerations=Accelerations(draft=draft)) for draft in (None, args.draft))
    (wanted, plain_seconds), (found, seconds) = answered(plain, asks, args.batch), answered(drafting, asks, args.batch)
    total = drafting.totals
    append(
        "spec_equal",
        {
            "model": args.model, "draft": args.draft, "n": args.n, "batch": args.batch, "threads": 1,
            "num_equal": sum(a.prefix == b.prefix for a, b in zip(wanted, found, strict=True)), "generated": total.generated_tokens,
            "drafted": total.drafted_tokens, "accepted": total.accepted_tokens, "plain_cpu_seconds": round(plain_seconds, 2),
            "cpu_seconds": round(seconds, 2), "speed_up": round(plain_seconds / seconds, 3),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
