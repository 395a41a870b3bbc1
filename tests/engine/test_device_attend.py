"""Attention on the device against plain softmax and against the CPU's plan: single tokens, prompts, trees, windows, dropped keys, shared prefixes."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine import attend_device
from ponder.engine.attend import Attention, Span, in_order, merge
from ponder.engine.attend_device import DeviceAttention, cut_pieces
from ponder.engine.pages import INT8, PLAIN, KVFormat, Pool, Sequence
from ponder.native import paged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Triton's interpreter
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(not paged.is_here(CPU), reason="needs Triton and TRITON_INTERPRET=1: the kernels run in its interpreter")
PATHS = [  # device, by kernels
    ("cpu", False),
    pytest.param("cpu", True, marks=needs_triton),
    pytest.param("cuda", False, marks=pytest.mark.gpu),
    pytest.param("cuda", True, marks=pytest.mark.gpu),
]
CONFIG = ModelConfig(
    arch="llama", num_layers=2, dim=96, num_heads=6, num_kv_heads=2, head_dim=32, ffn_dim=8, vocab_size=8, context_len=4096,
    norm_eps=1e-5, rope_theta=1e4,
)  # fmt: skip
CONFIGS = {
    "plain": CONFIG,
    "window": replace(CONFIG, windows=(None, 20)),
    "softcap": replace(CONFIG, attn_softcap=3.0, windows=(40, None)),
    "wide group": replace(CONFIG, num_heads=16, num_kv_heads=1),
    "odd width": replace(CONFIG, head_dim=24, num_heads=2),
}


def make(device: str, is_native: bool, config: ModelConfig = CONFIG, kv: KVFormat = PLAIN, *, is_shared: bool = True) -> DeviceAttention:
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    pool = Pool(shape, torch.float32, 1 << 23, kv, device=torch.device(device))
    found = DeviceAttention(config, pool, num_rows=16, is_native=is_native, is_shared=is_shared)
    assert found.has_kernels == is_native
    return found


def oracle(config: ModelConfig, kv: KVFormat = PLAIN) -> Attention:
    """The CPU's attention by PyTorch."""
    return Attention(config, Pool((config.num_layers, config.num_kv_heads, config.head_dim), torch.float32, 1 << 23, kv), is_native=False)


def rows_of(config: ModelConfig, seed: int, start: int, stop: int) -> Tensor:
    """q, k and v [n, H + 2 K, E] of a text's tokens start..stop: pure functions of (seed, place)."""
    heads = config.num_heads + 2 * config.num_kv_heads
    parts = [torch.randn(heads, config.head_dim, generator=torch.Generator().manual_seed(seed * 100_003 + i)) for i in range(start, stop)]
    return 1.5 * torch.stack(parts)


class Pair:
    """The same sequences on the CPU's attention and on the device's, moved in step."""

    def __init__(self, config: ModelConfig, device: str, is_native: bool, kv: KVFormat = PLAIN, *, is_shared: bool = True) -> None:
        self.config, self.device = config, device
        self.attentions = oracle(config, kv), make(device, is_native, config, kv, is_shared=is_shared)
        self.texts: list[list[tuple[int, int]]] = []  # per sequence, the (seed, place) of each token
        self.sequences: list[tuple[Sequence, Sequence]] = []

    def start(self) -> int:
        self.sequences.append(tuple(Sequence(attention.pool) for attention in self.attentions))  # type: ignore[arg-type]
        self.texts.append([])
        return len(self.texts) - 1

    def fork(self, index: int) -> int:
        self.sequences.append(tuple(s.fork() for s in self.sequences[index]))  # type: ignore[arg-type]
        self.texts.append(list(self.texts[index]))
        return len(self.texts) - 1

    def step(self, work: dict[int, tuple[int, int]], num_prompt: int = 0, parents: tuple[int, ...] | None = None) -> float:
        """work: sequence -> (number of new tokens, seed of their text). The largest difference of any output or lse, all layers."""
        spans: tuple[list[Span], list[Span]] = ([], [])
        rows = {}
        for index, (num, seed) in work.items():
            start = len(self.texts[index])
            self.texts[index] += [(seed, place) for place in range(start, start + num)]
            for side, sequence in enumerate(self.sequences[index]):
                assert sequence.reserve(start + num)
                spans[side].append(Span(sequence, start, start + num, num_prompt, parents if num > 1 else None))
            rows[index] = rows_of(self.config, seed, start, start + num)
        owner = {id(pair[side]): index for index, pair in enumerate(self.sequences) for side in (0, 1)}
        found = []
        for side, attention in enumerate(self.attentions):
            ordered = in_order(spans[side])
            order = [owner[id(span.sequence)] for span in ordered]
            flat = torch.cat([rows[index] for index in order]).to(attention.pool.device)
            found.append((order, self._run(attention, ordered, flat)))
        for index, (num, _) in work.items():
            for sequence in self.sequences[index]:
                sequence.num_tokens += num
        return max(self._differences(work, *found))

    def _run(self, attention: Attention, spans: list[Span], flat: Tensor) -> list[Tensor]:
        config, plan = self.config, attention.plan(spans)
        q, k, v = flat.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
        return [plan.attend(layer, q, k, v).cpu() for layer in range(config.num_layers)]

    def _differences(self, work, a, b):
        sizes = {index: num for index, (num, _) in work.items()}
        for x, y in zip(a[1], b[1], strict=True):
            by_index = [dict(zip(order, part.split([sizes[i] for i in order]), strict=True)) for order, part in ((a[0], x), (b[0], y))]
            yield from ((by_index[0][i] - by_index[1][i]).abs().max().item() for i in sizes)


@pytest.mark.parametrize(("device", "is_native"), PATHS)
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_of_a_crowd_equal_the_cpus(name: str, device: str, is_native: bool):
    """Prompts in pieces, single tokens, forks, mixed steps."""
    pair, rng = Pair(CONFIGS[name], device, is_native), random.Random(3)
    trunk = pair.start()
    worst = [pair.step({trunk: (70, 1)}, num_prompt=100), pair.step({trunk: (30, 1)}, num_prompt=100)]
    crowd = [trunk, *(pair.fork(trunk) for _ in range(3)), pair.start()]
    worst.append(pair.step({crowd[-1]: (5, 2), **{i: (1, 10 + i) for i in crowd[:-1]}}))
    for _ in range(3):
        worst.append(pair.step({i: (rng.choice((1, 1, 1, 4)), 10 + i) for i in rng.sample(crowd, 4)}, num_prompt=5))
    worst += [pair.step({i: (1, 20 + i) for i in crowd}) for _ in range(2)]
    assert max(worst) < 2e-5, worst


@pytest.mark.parametrize(("device", "is_native"), PATHS)
def test_pages_of_int8(device: str, is_native: bool):
    pair = Pair(CONFIG, device, is_native, INT8)
    a, b = pair.start(), pair.start()
    assert max(pair.step({a: (20, 1), b: (33, 2)}, num_prompt=33), *(pair.step({a: (1, 3), b: (1, 4)}) for _ in range(3))) < 2e-5


@pytest.mark.parametrize(("device", "is_native"), PATHS)
def test_trees_and_dropped_keys(device: str, is_native: bool):
    pair = Pair(CONFIGS["window"], device, is_native)
    a, b = pair.start(), pair.start()
    pair.step({a: (50, 1), b: (40, 2)}, num_prompt=50)
    for sequence in pair.sequences[b]:
        assert sequence.keep(0, 1, np.array([0, 1, 2, 17, 30, 39]))
        assert sequence.keep(1, 0, np.arange(0, 40, 3))
    worst = [pair.step({a: (1, 3), b: (1, 4)}) for _ in range(2)]
    worst.append(pair.step({a: (5, 5), b: (1, 4)}, parents=(-1, 0, 0, 2, -1)))
    worst.append(pair.step({a: (1, 5), b: (3, 6)}))
    assert max(worst) < 2e-5, worst


@pytest.mark.parametrize(("device", "is_native"), PATHS)
def test_out_and_lse_of_every_token(device: str, is_native: bool):
    """By plain float64 softmax over the tokens' own keys."""
    attention, config = make(device, is_native), CONFIG
    a, b = Sequence(attention.pool), Sequence(attention.pool)
    lengths, flat = {}, {}
    for sequence, num in ((a, 90), (b, 20)):
        sequence.reserve(num)
        rows = flat[sequence] = rows_of(config, num, 0, num).to(device)
        lengths[sequence] = num
        q, k, v = rows.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
        plan = attention.plan([Span(sequence, 0, num - 1, num - 1)])
        check(config, *plan.attend_with_lse(0, q[:-1], k[:-1], v[:-1]), rows, range(num - 1))
    spans = in_order([Span(s, lengths[s] - 1, lengths[s], 0) for s in (a, b)])
    rows = torch.cat([flat[span.sequence][-1:] for span in spans])
    q, k, v = rows.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
    out, lse = attention.plan(spans).attend_with_lse(0, q, k, v)
    for i, span in enumerate(spans):
        check(config, out[i : i + 1], lse[i : i + 1], flat[span.sequence], [span.start])


def check(config: ModelConfig, out: Tensor, lse: Tensor, rows: Tensor, places) -> None:
    group = config.num_heads // config.num_kv_heads
    q, k, v = rows.double().cpu().split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
    for row, place in enumerate(places):
        for head in range(config.num_heads):
            scores = k[: place + 1, head // group] @ q[place, head] / math.sqrt(config.head_dim)
            wanted = scores.softmax(0) @ v[: place + 1, head // group]
            assert (out[row].view(config.num_heads, -1)[head].double().cpu() - wanted).abs().max() < 2e-5
            assert abs(lse[row, head].item() - scores.logsumexp(0).item()) < 2e-5


# ---- shared prefixes


def crowd_on(attention: DeviceAttention, num: int, lengths: tuple[int, int, int]) -> list[Span]:
    """Spans of single tokens: half of `num` share lengths[1] tokens of which all share lengths[0], each with lengths[2] of its own."""
    trunk = Sequence(attention.pool)
    trunk.reserve(lengths[0])
    trunk.num_tokens = lengths[0]
    members = []
    for _ in range(2):
        branch = trunk.fork()
        branch.reserve(lengths[0] + lengths[1])
        branch.num_tokens = lengths[0] + lengths[1]
        members += [branch.fork() for _ in range(num // 2)]
    for i, member in enumerate(members):
        stop = sum(lengths) + i
        assert member.reserve(stop)
        member.num_tokens = stop
    return in_order(Span(member, member.num_tokens - 1, member.num_tokens, 0) for member in members)


def keys_met(spans: list[Span], pieces) -> list[list[int]]:
    """Per token, how often each of its keys is met; parts must be counted rightly."""
    counts = [[0] * span.stop for span in spans]
    slots = [set() for _ in spans]
    for first, num, slot, start, stop in [*pieces.single, *pieces.shared]:
        for token in range(first, first + num):
            assert slot not in slots[token]
            slots[token].add(slot)
            for key in range(start, min(stop, spans[token].stop)):
                counts[token][key] += 1
    assert [len(found) for found in slots] == pieces.num_parts
    assert all(found == set(range(num)) for found, num in zip(slots, pieces.num_parts))
    return counts


@pytest.mark.parametrize("chunk", [64, 128, 1024])
@pytest.mark.parametrize("is_shared", [True, False])
def test_every_key_is_met_once(chunk: int, is_shared: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attend_device, "MIN_SAVED", 1)
    attention = make("cpu", False)
    spans = crowd_on(attention, 10, (200, 150, 40))
    pieces = cut_pieces(spans, chunk, attention.config, is_shared)
    assert bool(pieces.shared) == is_shared
    assert all(count == [1] * len(count) for count in keys_met(spans, pieces))


def test_the_law_of_pieces_has_teeth(monkeypatch: pytest.MonkeyPatch):
    """Wrong: shared pieces that are met again by each."""
    monkeypatch.setattr(attend_device, "MIN_SAVED", 1)
    attention = make("cpu", False)
    spans = crowd_on(attention, 10, (200, 150, 40))
    pieces = cut_pieces(spans, 64, attention.config, True)
    wrong = replace(pieces, single=cut_pieces(spans, 64, attention.config, False).single, num_parts=pieces.num_parts)
    with pytest.raises(AssertionError):
        assert all(count == [1] * len(count) for count in keys_met(spans, wrong))


def test_prefixes_are_shared_only_where_it_pays():
    attention = make("cpu", False)
    assert not cut_pieces(crowd_on(attention, 4, (64, 64, 5)), 64, attention.config, True).shared
    assert cut_pieces(crowd_on(attention, 10, (640, 64, 5)), 64, attention.config, True).shared


@needs_triton
def test_shared_pieces_read_what_single_ones_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attend_device, "MIN_SAVED", 1)
    found = []
    for is_shared in (True, False):
        attention = make("cpu", True, is_shared=is_shared)
        generator = torch.Generator().manual_seed(0)
        for table in (attention.pool.keys, attention.pool.values):
            table.copy_(torch.randn(table.shape, generator=generator))
        spans = crowd_on(attention, 8, (130, 70, 9))
        batch = attention.batch(spans)
        assert (batch.shared is not None) == is_shared
        q = torch.randn(8, 6, 32, generator=generator)
        found.append((attention.read(batch, 1, q, 16), attend_device.read_gathered(attention, batch, 1, q, num_pages=16)))
    for (out, lse), (wanted, wanted_lse) in found:
        assert (out - wanted).abs().max() < 1e-5
        assert (lse - wanted_lse).abs().max() < 1e-5
    assert (found[0][0][0] - found[1][0][0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("device", "dtype"),
    [  # Triton's interpreter multiplies bfloat16 as if it were whole numbers
        pytest.param("cpu", torch.float16, marks=needs_triton),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_kernels_in_half_precision(device: str, dtype: torch.dtype):
    pool = Pool((2, 2, 32), dtype, 1 << 21, device=torch.device(device))
    attention = DeviceAttention(CONFIG, pool, num_rows=4)
    sequence = Sequence(pool)
    rows = rows_of(CONFIG, 1, 0, 80).to(device, dtype)
    q, k, v = rows.split([6, 2, 2], 1)
    sequence.reserve(80)
    attention.plan([Span(sequence, 0, 79, 79)]).attend(0, q[:79], k[:79], v[:79])
    batch = attention.batch([Span(sequence, 79, 80, 0)])
    attention.write(batch, 0, k[79:], v[79:])
    out, lse = attention.read(batch, 0, q[79:], 16)
    wanted, wanted_lse = attend_device.read_gathered(attention, batch, 0, q[79:], num_pages=16)
    assert out.dtype == dtype
    assert (out - wanted).abs().max() < 0.03
    assert (lse - wanted_lse).abs().max() < 1e-3


def test_pieces_merge_to_the_whole():
    """`merge`, which the kernel `join` repeats, over any cut of the keys."""
    attention = make("cpu", False)
    sequence = Sequence(attention.pool)
    sequence.reserve(48)
    q, k, v = rows_of(CONFIG, 1, 0, 48).split([6, 2, 2], 1)
    out, lse = attention.plan([Span(sequence, 0, 48, 48)]).attend_with_lse(0, q, k, v)
    keys, values = k.double().repeat_interleave(3, 1), v.double().repeat_interleave(3, 1)
    parts = []
    for lo, hi in ((0, 7), (7, 40), (40, 48)):
        scores = torch.einsum("he,nhe->hn", q[47].double(), keys[lo:hi]) / math.sqrt(32)
        parts.append((torch.einsum("hn,nhe->he", scores.softmax(-1), values[lo:hi]), scores.logsumexp(-1)))
    merged, merged_lse = merge(parts)
    assert (merged.flatten() - out[47]).abs().max() < 1e-5
    assert (merged_lse - lse[47]).abs().max() < 1e-5
