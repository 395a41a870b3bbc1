"""Where one weight format overtakes another: time of a matrix product by format and number of rows, the switch point of `mixed`.

python benchmarks/weight_formats.py [--threads N]

Formats take turns in every repetition, on so many copies of each matrix that none stays in the cache; a figure is the 10th percentile of its calls,
for what else the machine does only adds. Appends one row per matrix to benchmarks/results/weight_formats.jsonl.
"""

import argparse
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from lib.rows import append

from ponder.accelerate.weights.dense import Bf16
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8_dynamic import Int8Dynamic

SHAPES = {  # [out, in] of the matrices of a layer
    "smollm2-135m": {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)},
    "qwen2.5-coder-0.5b": {"qkv": (1152, 896), "o": (896, 896), "gate_up": (9728, 896), "down": (896, 4864)},
}
FORMATS = (Int4(), Bf16(), Int8Dynamic())
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128)
CACHE = 64e6  # bytes that no cache holds
CALLS = 40  # of each format and row count, at least


@dataclass(frozen=True)
class Random:
    """A RawTensor of float32 numbers."""

    weight: torch.Tensor
    name: str = "random"
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.weight[start:stop].clone()

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.weight[start:stop].numpy().view(np.uint8)


def microseconds(matrices: list[list], x: torch.Tensor) -> list[float]:
    """Of a call, for each format: matrices holds its copies."""
    taken: list[list[float]] = [[] for _ in matrices]
    while len(taken[0]) < CALLS:
        for times, copies in zip(taken, matrices):
            for matrix in copies:
                start = time.perf_counter()
                matrix.apply(x)
                times.append(time.perf_counter() - start)
    return [round(float(np.percentile(times, 10)) * 1e6, 1) for times in taken]


def measure(model: str, name: str, shape: tuple[int, int]) -> dict[str, object]:
    num_copies = max(2, min(16, int(CACHE / (shape[0] * shape[1]))))
    raw = [Random(torch.randn(shape)) for _ in range(num_copies)]
    matrices = [[fmt.pack((tensor,)) for tensor in raw] for fmt in FORMATS]
    rows: dict[str, dict[str, float]] = {fmt.name: {} for fmt in FORMATS}
    for num in ROW_COUNTS:
        for fmt, taken in zip(FORMATS, microseconds(matrices, torch.randn(num, shape[1]).bfloat16())):
            rows[fmt.name][str(num)] = taken
    few, many = rows["int4"], rows["bf16"]
    switch = next((num for num in ROW_COUNTS if many[str(num)] < few[str(num)]), None)
    per_byte = (few["16"] - many["16"]) / (2 * shape[0] * shape[1] / 1e6)
    figures = {"switch_rows": switch, "saved_us_per_MB_at_16": round(per_byte, 1), "load": round(os.getloadavg()[0], 1)}
    return {"model": model, "matrix": name, "shape": list(shape), "microseconds": rows, **figures}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for model, shapes in SHAPES.items():
        for name, shape in shapes.items():
            append("weight_formats", measure(model, name, shape))


if __name__ == "__main__":
    main()
