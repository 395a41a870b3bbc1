"""The day on a card: the tests that need one, then the two targets of the GPU path and its prefill, in one run of under 8 minutes.

    python benchmarks/gpu_targets.py [--no-tests] [--no-peer] [--profile] [--model qwen2.5-1.5b] [--tokens 128]

Weights are random, of the shape of Qwen2.5-1.5B in bfloat16: nothing is fetched. Measured and appended to results/gpu_targets.jsonl,
each row with the card's name:

    copy       bytes per second that the card moves, device to device: the bandwidth of the roofline
    decode     tokens per second of 1 and 64 sequences, and the share of the roofline: bytes of weights and keys per step over `copy`
    device     the same by the card's own clock, from one recorded step replayed: what the host's part costs is the difference
    peer       transformers' generate on the same weights, 1 and 64 sequences
    prefill    tokens per second of a prompt of 1,024 and of 4,096
    shared     64 sequences that share a prompt of 1,024 and of 8,192, against the same without sharing

Needs a CUDA build of PyTorch and this package's dependencies; transformers for the peer. The steps run apart: one that fails is
reported, and the others go on. Exit code 1 when tests or a step failed, 2 when there is no card.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lib.rows import append
from torch import Tensor

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt, Sampling
from ponder.core.errors import PonderError
from ponder.core.formats import ModelConfig
from ponder.engine.attend import Span, in_order
from ponder.engine.device import find_device
from ponder.engine.device_process import DeviceProcess
from ponder.engine.process import Settings
from ponder.models.decoder import Decoder, load
from ponder.models.place import place

ROOT = Path(__file__).parent.parent
SHAPES = {
    "qwen2.5-1.5b": ModelConfig(
        arch="qwen2", num_layers=28, dim=1536, num_heads=12, num_kv_heads=2, head_dim=128, ffn_dim=8960, vocab_size=151936, context_len=32768,
        norm_eps=1e-6, rope_theta=1e6, is_qkv_biased=True, is_head_tied=True,
    ),
    "tiny": ModelConfig(
        arch="qwen2", num_layers=2, dim=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=151936, context_len=32768,
        norm_eps=1e-6, rope_theta=1e6, is_qkv_biased=True, is_head_tied=True,
    ),
}  # fmt: skip
TARGETS = {"roofline share, 1 sequence": 0.60, "64 sequences, times transformers": 5.0}
CONTEXT, NUM_PROMPT = 1024, 128  # keys of a decode step, at most; tokens of a prompt that generates

MAX_TEST_SECONDS = 240


@dataclass(frozen=True)
class Drawn:
    """A RawTensor of random numbers, a pure function of its name."""

    name: str
    shape: tuple[int, ...]
    device: torch.device
    kind: str = "F32"

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        rows = range(*slice(start, stop).indices(self.shape[0]))
        generator = torch.Generator(self.device).manual_seed(hash_of(self.name) + rows.start)
        numbers = torch.randn((len(rows), *self.shape[1:]), generator=generator, device=self.device)
        return numbers.mul_(0.02) if len(self.shape) > 1 else numbers.mul_(0.02).add_("norm" in self.name)

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.dense(start, stop).cpu().numpy().view(np.uint8)


def hash_of(name: str) -> int:
    return sum(ord(letter) * 1009**i for i, letter in enumerate(name)) % (1 << 40)


@dataclass(frozen=True)
class Random:
    """A Checkpoint of random weights."""

    config: ModelConfig
    device: torch.device
    model_id: str = "random"

    def tensor(self, name: str) -> Drawn:
        c = self.config
        shapes = {
            "q": (c.num_heads * c.head_dim, c.dim), "k": (c.num_kv_heads * c.head_dim, c.dim), "v": (c.num_kv_heads * c.head_dim, c.dim),
            "o": (c.dim, c.num_heads * c.head_dim), "gate": (c.ffn_dim, c.dim), "up": (c.ffn_dim, c.dim), "down": (c.dim, c.ffn_dim),
            "embed": (c.vocab_size, c.dim),
        }  # fmt: skip
        part = name.split(".", 2)[-1] if name.startswith("layers.") else name
        shape = (shapes[part[0]][0],) if part.endswith(".bias") else shapes.get(part, (c.dim,))
        return Drawn(name, shape, self.device)


@dataclass(frozen=True)
class Numbers:
    """A Tokenizer of a vocabulary without text: a prompt is the numbers in its message."""

    vocab_size: int
    eos_ids: frozenset[int] = frozenset()
    pieces: tuple[bytes, ...] = ()

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ""

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        return [token for _, text in messages for token in self.encode(text)]


def prompt_of(seed: int, num_tokens: int, vocab_size: int) -> Prompt:
    ids = torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Prompt(messages=(("raw", " ".join(map(str, ids))),), max_tokens=1 << 14)


class Day:
    """The model, and what was measured so far."""

    def __init__(self, name: str, device: torch.device, num_tokens: int) -> None:
        self.name, self.device, self.num_tokens, self.config = name, device, num_tokens, SHAPES[name]
        self.card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no card"
        self.checkpoint = Random(self.config, device)
        weights, head = DenseDevice(device=device), DenseDeviceHead(device=device)
        start = time.perf_counter()
        self.decoder: Decoder = place(load(self.checkpoint, weights, head), weights, device)
        self.sync()
        self.bandwidth = 0.0
        self.rates: dict[tuple[str, int], float] = {}
        self.row("load", seconds=time.perf_counter() - start, weight_bytes=self.decoder.nbytes)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def row(self, kind: str, **figures: object) -> None:
        rounded = {key: float(f"{x:.5g}") if isinstance(x, float) else x for key, x in figures.items()}
        row = {"kind": kind, "card": self.card, "model": f"{self.name} shape, random, bfloat16", **rounded}
        if self.device.type == "cuda":
            append("gpu_targets", row)
        else:
            print(f"rehearsal, not kept: {row}")

    def process(self, *, is_shared: bool = True) -> DeviceProcess:
        gc.collect()  # of the process before: its graphs and pages hang in circles
        settings = Settings(max_rows=64, chunk=8192, kv_bytes=4 << 30 if self.device.type == "cuda" else 1 << 26, is_shared=is_shared)
        vocab = self.config.vocab_size
        return DeviceProcess(self.decoder, Numbers(vocab, pieces=(b"",) * vocab), Sarathi(chunk=8192), settings)

    def step_bytes(self, num: int, context: int) -> float:
        """Bytes that a decode step cannot but read: the weights, the head among them, and the keys and values."""
        c = self.config
        embed = c.vocab_size * c.dim * 2  # looked up, not read; the head of a tied model is counted by itself
        return self.decoder.nbytes - embed + num * context * c.num_layers * c.num_kv_heads * c.head_dim * 4

    # the measurements

    def copy(self) -> None:
        num = (1 << 32) if self.device.type == "cuda" else 1 << 24
        source, target = (torch.empty(num, dtype=torch.uint8, device=self.device) for _ in range(2))
        seconds = []
        for _ in range(8):
            self.sync()
            start = time.perf_counter()
            target.copy_(source)
            self.sync()
            seconds.append(time.perf_counter() - start)
        self.bandwidth = 2 * num / min(seconds)
        self.row("copy", bytes_per_second=self.bandwidth)

    def running(self, num: int, num_prompt: int, *, is_shared: bool = True, is_one_prompt: bool = False) -> DeviceProcess:
        """A process in which `num` sequences generate and every shape is recorded."""
        process = self.process(is_shared=is_shared)
        for seed in range(num):
            prompt = prompt_of(0 if is_one_prompt else seed, num_prompt, self.config.vocab_size)
            process.add(Extend(prefix=Prefix(prompt), seed=seed, sampling=Sampling() if seed % 2 else GREEDY))
        while len(process.running) < num or any(t.num_computed < t.num_given for _, t in process.running):
            process.step()
        for _ in range(6):
            process.step()
        self.sync()
        return process

    def steps(self, process: DeviceProcess) -> list[float]:
        seconds = []
        for _ in range(self.num_tokens):
            start = time.perf_counter()
            process.step()  # ends with the tokens on the host
            seconds.append(time.perf_counter() - start)
        return seconds

    def decode(self) -> None:
        for num in (1, 64):
            process = self.running(num, CONTEXT - self.num_tokens - 10)
            seconds = statistics.median(self.steps(process))
            context = CONTEXT - self.num_tokens // 2  # on average
            roof = self.step_bytes(num, context) / self.bandwidth
            self.rates["ours", num] = num / seconds
            on_card = self.replayed(process)
            self.row("decode", sequences=num, context=context, step_ms=seconds * 1e3, tokens_per_second=num / seconds, roofline_ms=roof * 1e3,
                     roofline_share=roof / seconds, replay_ms=on_card * 1e3, replay_share=roof / on_card)  # fmt: skip
            if num == 1:
                self.verdict("roofline share, 1 sequence", roof / seconds)

    def replayed(self, process: DeviceProcess) -> float:
        """Seconds of one forward pass and one draw, queued many times without the host's waiting."""
        spans = in_order(Span(t.pages, t.num_computed - 1, t.num_computed, t.num_prompt) for _, t in process.running if t.pages is not None)
        shapes = list(process.decode.shapes.values())[-1], list(process.draws.shapes.values())[-1]
        with torch.inference_mode():
            process.decode.run(spans, [0] * len(spans))
            self.sync()
            start = time.perf_counter()
            for _ in range(self.num_tokens):
                for shape in shapes:
                    shape.recording.run()
            self.sync()
        return (time.perf_counter() - start) / self.num_tokens

    def peer(self) -> None:
        """transformers' generate, static cache where it is compiled is not asked for: what a user gets."""
        import transformers

        c = self.config
        with torch.device(self.device):
            hf = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
                vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim, num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, max_position_embeddings=c.context_len,
                rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
            )).to(torch.bfloat16).eval()  # fmt: skip
        for num in (1, 64):
            ids = torch.stack([torch.tensor(Numbers(c.vocab_size).render(prompt_of(s, NUM_PROMPT, c.vocab_size).messages)) for s in range(num)])
            kwargs = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids, device=self.device)}
            times = {}
            for new in (2, 8, self.num_tokens):  # the first one warms up
                self.sync()
                start = time.perf_counter()
                hf.generate(ids.to(self.device), min_new_tokens=new, max_new_tokens=new, **kwargs)
                self.sync()
                times[new] = time.perf_counter() - start
            rate = num * (self.num_tokens - 8) / (times[self.num_tokens] - times[8])  # without the prompt
            ours = num / statistics.median(self.steps(self.running(num, NUM_PROMPT)))
            self.row("peer", peer=f"transformers {transformers.__version__} generate", sequences=num, prompt=NUM_PROMPT, tokens_per_second=rate,
                     ours_tokens_per_second=ours, ratio=ours / rate)  # fmt: skip
            if num == 64:
                self.verdict("64 sequences, times transformers", ours / rate)

    def prefill(self) -> None:
        for num in (1024, 4096):
            process, seconds = self.process(), []
            for seed in range(5):
                process.add(Extend(prefix=Prefix(prompt_of(100 + seed, num, self.config.vocab_size)), seed=0, max_tokens=1))
                self.sync()
                start = time.perf_counter()
                while process.jobs:
                    process.step()
                seconds.append(time.perf_counter() - start)
            self.row("prefill", prompt=num, tokens_per_second=num / min(seconds[1:]), milliseconds=1e3 * min(seconds[1:]))

    def shared(self) -> None:
        for num in (CONTEXT, 8 * CONTEXT):
            found = {}
            for is_shared in (True, False):
                process = self.running(64, num, is_shared=is_shared, is_one_prompt=True)
                found[is_shared] = statistics.median(self.steps(process))
            self.row(
                "shared", sequences=64, prompt=num, step_ms=found[True] * 1e3, unshared_step_ms=found[False] * 1e3, ratio=found[False] / found[True]
            )

    def profile(self) -> None:
        """Prints which kernels a step's time goes to, for 1 and 64 sequences."""
        from torch.profiler import ProfilerActivity, profile

        for num in (1, 64):
            process = self.running(num, CONTEXT - self.num_tokens - 10)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
                for _ in range(8):
                    process.step()
                self.sync()
            print(f"kernels of 8 steps, {num} sequences:")
            print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=140))

    def verdict(self, name: str, value: float) -> None:
        print(f"target {name}: {value:.3f}, wanted {TARGETS[name]}: {'met' if value >= TARGETS[name] else 'NOT met'} ({self.card})")


def run_tests() -> bool:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/engine", "tests/native", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        return subprocess.run([*command, "--durations=10"], cwd=ROOT, timeout=MAX_TEST_SECONDS, check=False, env=env).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"-- tests: stopped after {MAX_TEST_SECONDS} s; the last line above says how far they came")
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also list the kernels that a step's time goes to")
    parser.add_argument("--model", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", default="cuda", help="cpu rehearses the script, with --model tiny; nothing is kept")
    args = parser.parse_args()
    try:
        device = find_device(args.device)
    except PonderError as error:
        print(f"gpu_targets: {error}", file=sys.stderr)
        return 0
    failed = [] if args.no_tests or run_tests() else ["tests"]
    day = Day(args.model, device, args.tokens)
    steps: list[Callable[[], None]] = [
        day.copy,
        day.decode,
        *([] if args.no_peer else [day.peer]),
        day.prefill,
        day.shared,
        *([day.profile] if args.profile else []),
    ]
    for step in steps:
        start = time.perf_counter()
        try:
            step()
        except Exception:
            traceback.print_exc()
            failed.append(step.__name__)
        print(f"-- {step.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
    print(f"gpu_targets: {'all ran' if not failed else 'FAILED: ' + ', '.join(failed)} on {day.card}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
