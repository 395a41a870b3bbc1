"""The compiled draw beside PyTorch's, setting by setting: CPU time of one thread, for two vocabularies.

Logits are normal with standard deviation 3, so that 0.9 of the probability is in some hundred tokens, and 1, where it is in most of them. Both
ways take turns within a round; figures are medians over rounds of microseconds of CPU time a row, so that what else runs disturbs little.

    python benchmarks/sampling.py --rounds 15

Appends rows to benchmarks/results/sampling.jsonl.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lib.rows import append
from torch import Tensor

from ponder.core.asks import GREEDY, Sampling
from ponder.engine.sampler import Draw, draw_by_torch, draw_compiled
from ponder.native.build import reason

VOCABULARIES = {"smollm2-135m": 49152, "qwen2.5-coder-0.5b": 151936}
SPREADS = (3.0, 1.0)
SEEN = tuple(range(0, 2000, 5)) * 2


@dataclass(frozen=True)
class Form:
    """Stands for a matcher of a form that allows every third token."""

    allowed_V: Tensor

    @property
    def forms(self) -> "Form":
        return self

    def allowed(self, matchers: list["Form"]) -> Tensor:
        return torch.stack([m.allowed_V for m in matchers])


SETTINGS: dict[str, tuple[Sampling, bool]] = {
    "greedy": (GREEDY, False),
    "plain": (Sampling(), False),
    "top_k 40": (Sampling(top_k=40), False),
    "top_p 0.9": (Sampling(top_p=0.9), False),
    "min_p 0.05": (Sampling(min_p=0.05), False),
    "temperature 0.7, top_k 50, top_p 0.95": (Sampling(temperature=0.7, top_k=50, top_p=0.95), False),
    "penalties": (Sampling(repetition_penalty=1.1, frequency_penalty=0.2), False),
    "10 biases": (Sampling(logit_bias=tuple((i, 1.0) for i in range(10))), False),
    "a form": (Sampling(), True),
    "a form, penalties, top_p 0.9": (Sampling(top_p=0.9, presence_penalty=0.5), True),
}


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(model: str, name: str, spread: float, num_rows: int, rounds: int) -> None:
    size = VOCABULARIES[model]
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(0)) * spread
    sampling, is_formed = SETTINGS[name]
    allowed = torch.arange(size) % 3 == 0
    wishes = [Draw(seed, 5, sampling, Form(allowed) if is_formed else None, SEEN if sampling.has_penalties else ()) for seed in range(num_rows)]  # type: ignore[arg-type]
    ways = {"compiled": lambda: draw_compiled(logits, wishes), "torch": lambda: draw_by_torch(logits, wishes)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            times[way].append(cpu_seconds(run) / num_rows * 1e6)
    found = {way: round(statistics.median(some[1:]), 1) for way, some in times.items()}
    append("sampling", {
        "recipe": f"{model} vocabulary ({size}), spread {spread:g}, {num_rows} rows: {name}", "n": rounds, "cpu_microseconds_a_row": found,
        "times_faster": round(found["torch"] / found["compiled"], 1), "load": round(os.getloadavg()[0], 1),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    if why := reason():
        raise SystemExit(f"nothing to measure: {why}")
    torch.set_num_threads(1)
    for model in VOCABULARIES:
        for spread in SPREADS:
            for name in SETTINGS:
                measure(model, name, spread, args.rows, args.rounds)


if __name__ == "__main__":
    main()
