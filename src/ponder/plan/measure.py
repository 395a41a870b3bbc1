"""Measures a machine card: the machine by itself, and the kernels at one model's own shapes.

Every figure is the least of several, because whatever else runs can only add to it. Weights and keys are met in the order of a forward
pass, or after the caches were filled with something else, so that they come from where they come from in earnest.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.asks import Sampling
from ponder.core.formats import Linear
from ponder.engine.attend import Span
from ponder.engine.process import LocalProcess
from ponder.engine.sampler import Draw, draw
from ponder.models.decoder import Attend
from ponder.native.build import library
from ponder.native.layer import prompt_product
from ponder.plan import plant
from ponder.plan.fit import fit
from ponder.plan.machine import AttentionRate, Curve, MachineCard, MatrixRate, SamplerRate, TextRate, cpu_name, versions
from ponder.plan.predict import LONG, PROMPT, attention_terms
from ponder.plan.roofline import Outline, Pass, decode_pass, matrix_shapes

WORKING_SETS = tuple(1 << n for n in (17, 18, 19, 20, 22, 24, 25, 26, 28))
FLUSH = 1 << 27  # bytes that push all else out of the caches
MATRIX_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FEW_ROWS = 16  # up to which the weights' way from memory matters, so that all layers are swept; beyond, NUM_LAYERS of them
NUM_LAYERS, NUM_SWEEPS = 4, 4
HEAD_ROWS = 64
PROMPT_ROWS = (16, 32, 64, 128, 256, 512)
KEPT_ROWS = 16  # of their results
SAMPLER_ROWS = (1, 4, 16, 64)
PYTHON_ROWS = (1, 16, 64)
TOP_P = 0.95
ATTENTION_PASSES = (
    decode_pass(1, 128), decode_pass(1, 4000), decode_pass(8, 1000), decode_pass(64, 128), decode_pass(32, 2000),
    Pass((512,), (0,), 0), Pass((512,), (3072,), 0), Pass((128,) * 4, (0,) * 4, 0),
)  # fmt: skip


def least(run: Callable[[], object], *, num: int = 5, prepare: Callable[[], object] | None = None) -> float:
    """Fewest seconds of `num` runs after one that does not count."""
    run()
    best = float("inf")
    for _ in range(num):
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def measure_machine() -> MachineCard:
    """The machine without any model, in about a second. Rates are those of torch's present number of threads."""
    return MachineCard(
        name=cpu_name(), threads=torch.get_num_threads(), versions=versions(), bandwidth=tuple(bandwidths()), peaks=peaks(),
        op_seconds=op_seconds(), call_seconds=call_seconds(), region_seconds=region_seconds(torch.get_num_threads()),
    )  # fmt: skip


def bandwidths() -> Iterator[tuple[float, float]]:
    """(bytes, bytes/s) of reading working sets again and again: a sum of 64-bit integers, which computes next to nothing."""
    for size in WORKING_SETS:
        data = torch.ones(size // 8, dtype=torch.int64)
        times = max(1, (1 << 25) // size)

        def read(data: Tensor = data, times: int = times) -> None:
            for _ in range(times):
                data.sum()

        taken = least(read) / times - (op_seconds() if size < 1 << 22 else 0.0)
        yield float(size), size / max(taken, 1e-7)


def peaks() -> dict[str, float]:
    """FLOP/s of a large product in each arithmetic."""
    n = 1024
    a, b = torch.ones(n, n), torch.ones(n, n)
    small = torch.ones(n, n, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(small, [n, n])
    scales, zeros, codes = torch.ones(n), torch.zeros(n, dtype=torch.int32), torch.ones(n, n, dtype=torch.uint8)

    def integers() -> object:
        return torch.ops.onednn.qlinear_pointwise.default(codes, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    a16, b16 = a.bfloat16(), torch.ops.mkldnn._reorder_linear_weight(b.bfloat16(), n)
    runs: dict[str, Callable[[], object]] = {
        "float32": lambda: F.linear(a, b),
        "bfloat16": lambda: torch.ops.mkldnn._linear_pointwise.default(a16, b16, None, "none", [], ""),
        "int8": integers,
    }
    return {name: 2 * n**3 / least(run, num=5) for name, run in runs.items()}


def op_seconds() -> float:
    """Of a PyTorch operator on one number."""
    one = torch.ones(1)
    return least(lambda: [one.neg() for _ in range(1000)]) / 1000


def call_seconds() -> float:
    """Of a call into compiled code with as many arguments as a kernel has, and the tensor for its result."""
    function = ctypes.CDLL(None).labs
    function.argtypes, function.restype = [ctypes.c_long] + [ctypes.c_void_p] * 6, ctypes.c_long

    def calls() -> None:
        for _ in range(300):
            out = torch.empty(64)
            function(1, out.data_ptr(), out.data_ptr(), None, None, None, None)

    return least(calls) / 300


def region_seconds(threads: int) -> float:
    """Of an OpenMP region in which each thread does nothing; 0 where the OpenMP of PyTorch is another."""
    library()
    mapped = Path("/proc/self/maps")
    paths = {line.split()[-1] for line in (mapped.read_text().splitlines() if mapped.exists() else []) if "libgomp" in line}
    if not paths:
        return 0.0
    parallel = ctypes.CDLL(sorted(paths)[0]).GOMP_parallel
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
    return least(lambda: [parallel(nothing, None, threads, 0) for _ in range(200)]) / 200


@torch.inference_mode()
def measure_model(process: LocalProcess, outline: Outline, card: MachineCard) -> MachineCard:
    """`card` with the rates of the model's matrices, attention, sampler and tokenizer, and of the step loop; some seconds.

    process: one of plan.plant, whose pages are planted.
    """
    config = outline.config
    return card.learn(
        MachineCard(
            name=card.name, threads=card.threads, versions=card.versions, bandwidth=card.bandwidth, peaks=card.peaks, op_seconds=card.op_seconds,
            call_seconds=card.call_seconds, region_seconds=card.region_seconds, python=python_curves(process), texts=(text_rate(process),),
            matrices=(*matrix_rates(process, outline, card), *prompt_rates(process, outline, card)),
            attentions=(attention_rate(process, card.threads),),
            samplers=tuple(SamplerRate(config.vocab_size, top_p, sampler_curve(config.vocab_size, top_p)) for top_p in (1.0, TOP_P)),
        )
    )  # fmt: skip


def roles_of(process: LocalProcess) -> list[dict[str, Linear]]:
    """The matrices of each layer by role, of the shapes of `matrix_shapes`: of experts the first, and none where other layers are dense."""
    layers, found = process.decoder.layers, []
    has_dense = any(layer.experts is None for layer in layers)
    for layer in layers:
        roles: dict[str, Linear | None] = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        if layer.experts is not None and not has_dense:
            roles |= {"gate_up": layer.experts.experts[0].gate_up, "down": layer.experts.experts[0].down}
        found.append({role: linear for role, linear in roles.items() if linear is not None})
    return found


def matrix_rates(process: LocalProcess, outline: Outline, card: MachineCard) -> Iterator[MatrixRate]:
    """Each role's seconds by rows, mean over the layers, met layer after layer as in a pass."""
    shapes, layers, dtype = matrix_shapes(outline.config), roles_of(process), process.decoder.dtype
    seconds: dict[str, list[float]] = {role: [] for role in shapes}
    most = max(map(len, layers))
    for rows in MATRIX_ROWS:
        inputs = {role: torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(0)).to(dtype) for role, shape in shapes.items()}
        some = layers if rows <= FEW_ROWS else [layer for layer in layers if len(layer) == most][:NUM_LAYERS]
        sweeps = [matrix_sweep(some, process.decoder.head if rows <= HEAD_ROWS else None, inputs) for _ in range(NUM_SWEEPS)][1:]
        for role in sweeps[0]:
            seconds[role].append(min(sweep[role] for sweep in sweeps))
    for role, (out, into) in shapes.items():
        measured = [max(s - card.call_seconds - card.region_seconds, 1e-9) for s in seconds[role]]
        format = outline.head if role == "head" else outline.weights
        curve = Curve(tuple(map(float, MATRIX_ROWS[: len(measured)])), tuple(measured))
        yield MatrixRate(format, out, into, outline.weight_nbytes[role] * out * into, curve)


def prompt_rates(process: LocalProcess, outline: Outline, card: MachineCard) -> Iterator[MatrixRate]:
    """Of the products of prompts, where they are others."""
    layers, rows = roles_of(process)[:NUM_LAYERS], tuple(map(float, PROMPT_ROWS))
    for role, (out, into) in matrix_shapes(outline.config).items():
        products = [found for layer in layers if role in layer and (found := prompt_product(layer[role], KEPT_ROWS)) is not None]
        if products:
            seconds = [max(sweep - card.call_seconds - card.region_seconds, 1e-9) for sweep in product_seconds(products, into)]
            yield MatrixRate(outline.weights + PROMPT, out, into, outline.weight_nbytes[role] * out * into, Curve(rows, tuple(seconds)))


def product_seconds(products: Sequence[Callable[[Tensor], Tensor]], width: int) -> Iterator[float]:
    """Mean seconds of a product of [n, width] for each n of PROMPT_ROWS."""
    for rows in PROMPT_ROWS:
        x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).bfloat16()
        yield least(partial(multiply_all, products, x), num=NUM_SWEEPS) / len(products)


def multiply_all(products: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> None:
    for product in products:
        product(x)


def matrix_sweep(layers: Sequence[dict[str, Linear]], head: Linear | None, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Mean seconds of a product by role, the layers in order and then the head."""
    taken: dict[str, list[float]] = {}
    last = [] if head is None else [{"head": head}]
    for layer in (*layers, *last):
        for role, linear in layer.items():
            start = time.perf_counter()
            linear.apply(inputs[role])
            taken.setdefault(role, []).append(time.perf_counter() - start)
    return {role: sum(seconds) / len(seconds) for role, seconds in taken.items()}


def attention_rate(process: LocalProcess, threads: int) -> AttentionRate:
    """The terms of `attention_terms`, fitted to the kernel alone on a few passes, each after the caches were flushed."""
    config = process.decoder.config
    features, seconds = [], []
    for passed in ATTENTION_PASSES:
        longest = max(new + before for new, before in zip(passed.new, passed.before))
        if longest >= min(process.context_len, plant.max_planted(process)):
            continue
        features.append(attention_terms(passed, config, config.window(0), threads))
        seconds.append(attention_seconds(process, passed))
    call, unit, block, row = fit(features, seconds)
    return AttentionRate(config.num_heads // config.num_kv_heads, config.head_dim, call, unit, block, row)


def attention_seconds(process: LocalProcess, passed: Pass) -> float:
    """Of one layer's attention in a pass, planning apart, with keys that are in no cache."""
    config, generator = process.decoder.config, torch.Generator().manual_seed(0)
    sequences = [plant.planted_pages(process, index, before) for index, before in enumerate(passed.before)]
    for sequence, new, before in zip(sequences, passed.new, passed.before):
        sequence.reserve(before + new)
    plan = process.attention.plan([Span(s, before, before + new, 0) for s, new, before in zip(sequences, passed.new, passed.before)])
    num, width = passed.num_tokens, config.head_dim
    qkv = torch.randn(num, config.num_heads + 2 * config.num_kv_heads, width, generator=generator).to(process.decoder.dtype)
    q, k, v = torch.split(qkv, [config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
    others = torch.ones(FLUSH // 8, dtype=torch.int64)
    layers = [layer for layer in range(config.num_layers) if config.window(layer) == config.window(0)]
    if passed.num_tokens * sum(passed.before) > 1 << 20:
        layers = layers[:4]
    attend: Attend = plan.attend
    taken = least(lambda: [attend(layer, q, k, v) for layer in layers], num=3, prepare=others.sum)
    for sequence in sequences:
        sequence.release()
    return taken / len(layers)


def sampler_curve(vocab: int, top_p: float) -> Curve:
    """Seconds of `draw` by rows whose probabilities fall with the power -1.5 of their rank, as those of text do."""
    ranks = torch.stack([torch.randperm(vocab, generator=torch.Generator().manual_seed(row)) for row in range(SAMPLER_ROWS[-1])])
    logits = -1.5 * (ranks + 1.0).log()
    wishes = draws_of(SAMPLER_ROWS[-1], Sampling(temperature=0.8, top_p=top_p))
    seconds = [least(lambda rows=rows: draw(logits[:rows], wishes[:rows]), num=3) for rows in SAMPLER_ROWS]  # type: ignore[misc]
    return Curve(tuple(map(float, SAMPLER_ROWS)), tuple(seconds))


def draws_of(num: int, sampling: Sampling) -> list[Draw]:
    return [Draw(seed, 0, sampling) for seed in range(num)]


class Hollow:
    """A decoder that computes nothing and says anything: what is left of a step is the loop."""

    def __init__(self, process: LocalProcess, vocab: int = 256) -> None:
        inner = process.decoder
        self.config, self.model_id, self.dtype, self.flops = inner.config, inner.model_id, inner.dtype, inner.flops
        self.tail = self.reader = None
        self.hidden = torch.zeros(1, inner.config.dim, dtype=inner.dtype)
        self.answer = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, prompts: Sequence[tuple[int, int]] = ()) -> Tensor:
        return self.hidden.expand(len(tokens), -1)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return self.answer.expand(len(hidden_RD), -1).contiguous()


def python_curves(process: LocalProcess) -> tuple[Curve, Curve]:
    """Seconds of a step by sequences, of short and of LONG ones, without decoder and sampler."""
    real, hollow = process.decoder, Hollow(process)
    process.decoder = hollow  # type: ignore[assignment]
    try:
        longest = min(process.context_len - 64, plant.max_planted(process))
        lengths = (min(128, longest), min(LONG, longest))
        return tuple(Curve(tuple(map(float, PYTHON_ROWS)), tuple(loop_seconds(process, hollow, rows, n) for rows in PYTHON_ROWS)) for n in lengths)  # type: ignore[return-value]
    finally:
        process.decoder = real


def loop_seconds(process: LocalProcess, hollow: Hollow, rows: int, length: int) -> float:
    sampling = Sampling(temperature=0.8)
    plant.running(process, plant.planted_asks(process, rows, length, max_tokens=24, sampling=sampling))
    others = torch.ones(FLUSH // 8, dtype=torch.int64)
    step = least(process.step, num=12, prepare=others.sum)
    plant.clear(process)
    logits, wishes = hollow.logits(hollow.hidden.expand(rows, -1)), draws_of(rows, sampling)
    return max(0.0, step - least(lambda: draw(logits, wishes), num=5))


TEXT = "The quick brown fox, who had seen 17 winters, did not jump over the lazy dog; he walked.\n"


def text_rate(process: LocalProcess) -> TextRate:
    text = TEXT * 200
    ids = process.tokenizer.encode(text)
    encode = least(lambda: process.tokenizer.encode(text), num=3)
    decode = least(lambda: process.tokenizer.decode(ids), num=3)
    return TextRate(process.decoder.config.vocab_size, len(text) / encode, len(ids) / encode, len(ids) / decode)


def outline_of(process: LocalProcess, weights: str, head: str) -> Outline:
    """The outline of an opened model: bytes per weight as they are packed."""
    shapes, layers = matrix_shapes(process.decoder.config), roles_of(process)
    by_role = {role: float(np.mean([layer[role].nbytes for layer in layers if role in layer])) for role in shapes if role != "head"}
    by_role["head"] = float(process.decoder.head.nbytes)
    kv = process.pool.keys.element_size() * 2.0
    return Outline(process.decoder.config, weights, head, {role: by_role[role] / (out * into) for role, (out, into) in shapes.items()}, kv)
