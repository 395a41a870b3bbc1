"""Trial of block sizes for products of few rows (native/rows.few_rows) on a card, beside PyTorch's product, at the shapes of Qwen2.5-1.5B.

    python benchmarks/gpu_rows.py [--rows 1]

Prints microseconds and bytes per second of each. Weights are four copies met in turn, so that none is found in the cache.
"""

import argparse
import itertools

import torch
import torch.nn.functional as F
from lib.card import seconds_of
from torch import Tensor

from ponder.native import rows

SHAPES = {"down": (1536, 8960), "gate_up": (17920, 1536), "o": (1536, 1536)}
TRIED = list(itertools.product((1, 2, 4, 8), (1024, 2048), (4, 8)))  # outputs, inputs at a time, warps
NUM_COPIES, NUM_ROUNDS = 4, 20


def calls_of(name: str, num: int, weights: list[Tensor]) -> list:
    width, dim = weights[0].shape[1], 1536
    x, norm = torch.randn(num, width, device="cuda"), torch.ones(width, device="cuda")
    if name in ("o", "down"):
        into, x = torch.zeros(num, dim, device="cuda"), x.to(torch.bfloat16)
        return [lambda w=w: rows.few_rows(x, w, into=into) for w in weights]
    activation = "silu" if name == "gate_up" else None
    return [lambda w=w: rows.few_rows(x, w, norm=norm, eps=1e-6, activation=activation) for w in weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1)
    num = parser.parse_args().rows
    print(f"{torch.cuda.get_device_name()}, {num} rows")
    chosen = rows.blocks_of
    for name, shape in SHAPES.items():
        weights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(0.02) for _ in range(NUM_COPIES)]
        x = torch.randn(num, shape[1], device="cuda", dtype=torch.bfloat16)
        found = {"torch": seconds_of([lambda w=w, x=x: F.linear(x, w) for w in weights], NUM_ROUNDS)}
        for blocks in TRIED:
            rows.blocks_of = lambda *_, found=blocks, **__: found
            found[f"{blocks[0]} x {blocks[1]}, {blocks[2]} warps"] = seconds_of(calls_of(name, num, weights), NUM_ROUNDS)
        rows.blocks_of = chosen
        found["chosen"] = seconds_of(calls_of(name, num, weights), NUM_ROUNDS)
        best = sorted(found, key=found.__getitem__)[:4]
        for label in dict.fromkeys([*best, "chosen", "torch"]):
            print(f"{name:8} {label:24} {found[label] * 1e6:6.2f} us {weights[0].nbytes / found[label] / 1e12:5.2f} TB/s")


if __name__ == "__main__":
    main()
