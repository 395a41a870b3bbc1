"""C(M) / C(1): what a step of M rows costs beside one row, in CPU time of one thread, for one sequence of a given context.

`python benchmarks/spec_cost.py [--model NAME] [--weights NAME] [--context N]`
"""

import argparse
import statistics
import time

import torch
from lib.rows import append

import ponder
from ponder.core.asks import Sampling
from ponder.engine.attend import Span
from ponder.engine.pages import Sequence
from ponder.engine.process import LocalProcess
from ponder.engine.sampler import Draw

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    process = ponder.open_model(ponder.pull(args.model), args.weights, threads=1)
    with torch.inference_mode():
        sequence = prefilled(process, args.context)
        found: dict[int, list[float]] = {num: [] for num in ROWS}
        for _ in range(1 + args.repeats):  # in turns, so that what else the machine does meets all alike; the first turn warms up
            for num in ROWS:
                found[num].append(seconds(process, sequence, args.context, num))
        taken = {num: statistics.median(times[1:]) for num, times in found.items()}
    append(
        "spec_cost",
        {
            "model": args.model, "weights": args.weights, "context": args.context, "repeats": args.repeats, "threads": 1,
            "ms_of_one_row": round(taken[1] * 1000, 3), "ratio": {str(num): round(taken[num] / taken[1], 3) for num in ROWS},
        },
    )  # fmt: skip


def prefilled(process: LocalProcess, context: int) -> Sequence:
    """A sequence of that many tokens of a prompt."""
    sequence = Sequence(process.pool)
    assert sequence.reserve(context + max(ROWS))
    process._forward([Span(sequence, 0, context, context)], [i % 1000 for i in range(context)])
    sequence.num_tokens = context
    return sequence


def seconds(process: LocalProcess, sequence: Sequence, context: int, num: int) -> float:
    """CPU seconds of a forward pass over num rows and a greedy draw from each."""
    wishes = [Draw(0, i, Sampling(temperature=0.0)) for i in range(num)]
    start = time.process_time()
    hidden = process._forward([Span(sequence, context, context + num, context)], list(range(100, 100 + num)))
    process._draw(hidden, wishes)
    return time.process_time() - start


if __name__ == "__main__":
    main()
