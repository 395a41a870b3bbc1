"""The compiled matrix kernels beside those of PyTorch: each matrix of two models, then a whole decoder without attention.

A matrix: microseconds of one product at 1 to 256 rows. Each engine has so many copies of it, used one after the other, that no
cache holds the next one's weights, as in a step of decoding.
A decoder: milliseconds of a step of T tokens whose attention returns its values, so that all else is what is measured. Engines
take turns within a round; figures are medians over rounds, and the least. Run it on a machine that does nothing else.

    python benchmarks/native_kernels.py --rounds 15 --threads 2 --models smollm2-135m

Appends rows to benchmarks/results/native_kernels.jsonl.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable

import torch
from lib.rows import append
from torch import Tensor

from ponder.accelerate.weights.dense import Bf16
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.native4 import Native4
from ponder.accelerate.weights.native8 import Native8
from ponder.catalogue import HEADS, WEIGHTS
from ponder.core.formats import Linear, WeightFormat
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import Decoder, load
from ponder.models.fetch import pull
from ponder.native.build import reason
from ponder.testing.in_memory import InMemory

SHAPES = {  # [out, in]
    "smollm2-135m qkv": (960, 576), "smollm2-135m o": (576, 576), "smollm2-135m gate_up": (3072, 576), "smollm2-135m down": (576, 1536),
    "smollm2-135m head": (49152, 576), "qwen2.5-0.5b qkv": (1152, 896), "qwen2.5-0.5b gate_up": (9728, 896), "qwen2.5-0.5b down": (896, 4864),
}  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
TOKENS = (1, 4, 16, 64, 256, 1024)
FORMATS = {"native4": Native4(fallback=Int4()), "native8": Native8(fallback=Bf16()), "int4": Int4(), "bf16": Bf16()}
CACHES = 64 << 20  # bytes of all copies of a matrix: more than any cache holds


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(engines: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every engine, without the first."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, run in engines.items():
            times[name].append(timed(run))
    return {name: found[1:] for name, found in times.items()}


def summary(times: dict[str, list[float]], unit: float) -> dict[str, list[float]]:
    """engine -> [median, least]."""
    return {name: [round(statistics.median(found) / unit, 1), round(min(found) / unit, 1)] for name, found in times.items()}


def copies(fmt: WeightFormat, weight: Tensor) -> list[Linear]:
    """The same matrix packed until its copies are more than the caches hold."""
    first = fmt.pack((InMemory(weight),))
    return [first, *(fmt.pack((InMemory(weight),)) for _ in range(CACHES // first.nbytes))]


def measure_matrix(name: str, rounds: int) -> None:
    rng = torch.Generator().manual_seed(0)
    out, width = SHAPES[name]
    weight = torch.randn(out, width, generator=rng)
    packed = {fmt: copies(f, weight) for fmt, f in FORMATS.items()}
    nbytes = {fmt: some[0].nbytes for fmt, some in packed.items()}
    rings = {fmt: itertools.cycle(some) for fmt, some in packed.items()}
    for rows in ROWS:
        x = torch.randn(rows, width, generator=rng).bfloat16()
        times = in_turns({fmt: lambda ring=ring, x=x: next(ring).apply(x) for fmt, ring in rings.items()}, rounds)
        least = min(times["native4"])
        append("native_kernels", {
            "recipe": f"{name} [{out}, {width}], {rows} rows", "n": rounds, "microseconds": summary(times, 1e-6), "unit": "[median, least]",
            "native4_gb_per_s": round(nbytes["native4"] / least / 1e9, 1), "native4_gmac_per_s": round(rows * out * width / least / 1e9, 1),
            "load": round(os.getloadavg()[0], 1),
        })  # fmt: skip


def step(decoder: Decoder, num_tokens: int) -> Callable[[], object]:
    """A step of `num_tokens` tokens, each of a sequence of its own up to 64, beyond of one prompt; attention gives back values."""
    tokens, positions = torch.arange(num_tokens), torch.arange(num_tokens) % decoder.config.context_len
    group = decoder.config.num_heads // decoder.config.num_kv_heads

    def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        return v_TKE.repeat_interleave(group, 1).flatten(1)

    def run() -> Tensor:
        hidden = decoder.forward(tokens, positions, attend)
        return decoder.logits(hidden if num_tokens <= 64 else hidden[-1:])

    return run


def measure_decoder(model: str, tokens: list[int], rounds: int) -> None:
    checkpoint = open_checkpoint(pull(model))
    decoders = {name: load(checkpoint, WEIGHTS[name], HEADS[name]) for name in ("native", "int4", "bf16")}
    for num_tokens in tokens:
        times = in_turns({name: step(decoder, num_tokens) for name, decoder in decoders.items()}, rounds)
        append("native_kernels", {
            "recipe": f"{model}, whole decoder without attention, {num_tokens} tokens at once", "n": rounds, "milliseconds": summary(times, 1e-3),
            "unit": "[median, least]", "tokens_per_s": {name: round(num_tokens / statistics.median(found)) for name, found in times.items()},
            "load": round(os.getloadavg()[0], 1),
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--models", nargs="*", default=["smollm2-135m"], help="whose decoders are measured")
    parser.add_argument("--matrices", nargs="*", default=list(SHAPES), choices=list(SHAPES), metavar="NAME")
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS, help="of a decoder's step")
    args = parser.parse_args()
    if why := reason():
        raise SystemExit(f"nothing to measure: {why}")
    torch.set_num_threads(args.threads)
    for name in args.matrices:
        measure_matrix(name, args.rounds)
    for model in args.models:
        measure_decoder(model, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
