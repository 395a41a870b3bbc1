"""Attention over pages: both kernels against plain softmax, equal bits whatever runs beside, trees, windows, dropped keys, merging."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span, attention_reference, in_order, merge, shared_runs
from ponder.engine.pages import INT8, PLAIN, KVFormat, Pool, Sequence
from ponder.native.build import library

KERNELS = [pytest.param(True, marks=pytest.mark.skipif(library() is None, reason="no compiled kernel here")), False]
CONFIG = ModelConfig(
    arch="llama", num_layers=2, dim=96, num_heads=6, num_kv_heads=2, head_dim=32, ffn_dim=8, vocab_size=8, context_len=4096,
    norm_eps=1e-5, rope_theta=1e4,
)  # fmt: skip


def make(
    is_native: bool, config: ModelConfig = CONFIG, kv: KVFormat = PLAIN, dtype: torch.dtype = torch.bfloat16, is_shared: bool = True
) -> Attention:
    pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), dtype, 1 << 25, kv)
    found = Attention(config, pool, is_native=is_native, is_shared=is_shared)
    assert (found.kernel is not None) == (is_native and dtype == torch.bfloat16)
    return found


def rows_of(config: ModelConfig, seed: int, num: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of `num` tokens of a sequence named `seed`: the longer one begins with the shorter one."""
    parts = []
    for i in range(num):
        generator = torch.Generator().manual_seed(seed * 100_003 + i)
        parts.append(torch.randn(config.num_heads + 2 * config.num_kv_heads, config.head_dim, generator=generator) * 1.5)
    rows = torch.stack(parts).to(dtype)
    return rows[:, : config.num_heads], rows[:, config.num_heads : -config.num_kv_heads], rows[:, -config.num_kv_heads :]


def wanted(config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """float64 softmax, q [n, H, E] against k, v [m, K, E], seen bool [n, m] -> [n, H * E]."""
    group = config.num_heads // config.num_kv_heads
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("nhe,mhe->hnm", q.double(), k) / math.sqrt(config.head_dim)
    if config.attn_softcap is not None:
        scores = config.attn_softcap * torch.tanh(scores / config.attn_softcap)
    scores = scores.masked_fill(~seen, -math.inf)
    return torch.einsum("hnm,mhe->nhe", scores.softmax(-1), v).flatten(1)


def run(attention: Attention, spans: list[Span], rows: dict[int, tuple[Tensor, Tensor, Tensor]], layer: int = 0) -> dict[int, Tensor]:
    """What each sequence's span reads; `rows` by id of the sequence."""
    ordered = in_order(spans)
    plan = attention.plan(ordered)
    q, k, v = (torch.cat([rows[id(s.sequence)][i] for s in ordered]) for i in range(3))
    out, found, at = plan.attend(layer, q, k, v), {}, 0
    for span in ordered:
        num = span.stop - span.start
        found[id(span.sequence)] = out[at : at + num]
        span.sequence.num_tokens = span.stop
        at += num
    return found


def compute(attention: Attention, sequence: Sequence, seed: int, stops: list[int], num_prompt: int) -> Tensor:
    """Alone, in chunks that end at `stops`."""
    outs = []
    for stop in stops:
        start = sequence.num_tokens
        assert sequence.reserve(stop)
        rows = tuple(x[start:] for x in rows_of(attention.config, seed, stop, attention.pool.dtype))
        outs.append(run(attention, [Span(sequence, start, stop, num_prompt)], {id(sequence): rows})[id(sequence)])  # type: ignore[dict-item]
    return torch.cat(outs)


CASES = [(2, 16), (6, 32), (14, 64), (8, 80), (4, 128), (4, 256)]


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize(("num_heads", "width"), CASES)
def test_equals_plain_softmax(is_native: bool, window: int | None, softcap: float | None, num_heads: int, width: int):
    config = replace(CONFIG, num_heads=num_heads, head_dim=width, windows=() if window is None else (window,) * 2, attn_softcap=softcap)
    attention = make(is_native, config)
    num = 600 if width <= 64 else 150
    q, k, v = rows_of(config, 1, num)
    at = torch.arange(num)
    seen = at <= at[:, None]
    if window is not None:
        seen &= at > at[:, None] - window
    found = compute(attention, Sequence(attention.pool), 1, [70, 71, 72, num // 2, num - 1, num], num - 5)
    error = (found.double() - wanted(config, q, k, v, seen)).abs()
    assert error.max() < 0.06, error.max()
    assert error.mean() < 3e-3


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_float32_equals_plain_softmax(window: int | None, softcap: float | None):
    config = replace(CONFIG, windows=() if window is None else (window,) * 2, attn_softcap=softcap)
    attention = make(False, config, dtype=torch.float32)
    q, k, v = rows_of(config, 1, 150, torch.float32)
    at = torch.arange(150)
    seen = (at <= at[:, None]) & (at > at[:, None] - (window or 1000))
    found = compute(attention, Sequence(attention.pool), 1, [70, 71, 72, 149, 150], 140)
    assert (found.double() - wanted(config, q, k, v, seen)).abs().max() < 1e-5


@pytest.mark.parametrize("is_native", KERNELS)
def test_an_off_by_one_window_would_be_seen(is_native: bool):
    config = replace(CONFIG, windows=(40, 40))
    found = {}
    for window in (40, 41):
        attention = make(is_native, replace(config, windows=(window, window)))
        found[window] = compute(attention, Sequence(attention.pool), 1, [100], 100)
    assert torch.equal(found[40][:40], found[41][:40])
    assert (found[40][40:] != found[41][40:]).any(1).all()


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("kv", [PLAIN, INT8], ids=lambda x: x.name)
def test_bits_do_not_depend_on_neighbours_chunks_or_sharing(is_native: bool, kv: KVFormat):
    """Every token's result alone, whole, equals bit for bit that in a crowd of forks, in random chunks."""
    rng = random.Random(3)
    lengths = {1: 700, 2: 130, 3: 64, 4: 1}
    alone = {}
    for seed, num in lengths.items():
        attention = make(is_native, kv=kv)
        alone[seed] = compute(attention, Sequence(attention.pool), seed, [num], num - 20)
    attention = make(is_native, kv=kv)
    crowd = {}
    for seed, num in lengths.items():
        trunk = Sequence(attention.pool)
        compute(attention, trunk, seed, [max(1, num // 2)], num - 20)
        crowd[seed] = [trunk, *(trunk.fork() for _ in range(4))]
    todo = [(seed, s) for seed, members in crowd.items() for s in members]
    num_shared = 0
    while todo:
        spans, rows, checks = [], {}, []
        for seed, sequence in rng.sample(todo, min(len(todo), 9)):
            start = sequence.num_tokens
            stop = min(lengths[seed], start + rng.choice([1, 1, 3, 50]))
            if start == stop:
                todo.remove((seed, sequence))
                continue
            assert sequence.reserve(stop)
            spans.append(Span(sequence, start, stop, lengths[seed] - 20))
            rows[id(sequence)] = tuple(x[start:] for x in rows_of(CONFIG, seed, stop))
            checks.append((seed, sequence, start, stop))
        if not spans:
            continue
        num_shared += any(group[5] > 0 for group in shared_runs(in_order(spans), True))
        found = run(attention, spans, rows)  # type: ignore[arg-type]
        for seed, sequence, start, stop in checks:
            assert torch.equal(found[id(sequence)], alone[seed][start:stop]), (seed, start, stop)
    assert num_shared > 5, "the test met no shared prefix"


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("window", [None, 5])
def test_a_tree_reads_as_each_of_its_paths(is_native: bool, window: int | None):
    """Every node sees the keys before the tree and its own ancestors: as if its path alone had been computed."""
    config = CONFIG if window is None else replace(CONFIG, windows=(window, window))
    attention = make(is_native, config)
    rng = random.Random(1)
    parents = tuple(rng.randint(-1, i - 1) for i in range(70))
    sequence, other = Sequence(attention.pool), Sequence(attention.pool)
    context = 90
    compute(attention, sequence, 1, [context], context)
    compute(attention, other, 2, [30], 30)
    assert sequence.reserve(context + 70)
    assert other.reserve(31)
    q, k, v = rows_of(config, 9, 70)
    plain = tuple(x[30:] for x in rows_of(config, 2, 31))
    found = run(attention, [Span(sequence, context, context + 70, 0, parents), Span(other, 30, 31, 30)], {id(sequence): (q, k, v), id(other): plain})  # type: ignore[dict-item]
    _, k_before, v_before = rows_of(config, 1, context)
    for node in range(70):
        path = [node]
        while parents[path[0]] >= 0 if path[0] >= 0 else False:
            path.insert(0, parents[path[0]])
        keys, values = torch.cat([k_before, k[path]]), torch.cat([v_before, v[path]])
        seen = torch.arange(len(keys))[None] > (len(keys) - 1 - window if window else -1)
        error = (found[id(sequence)][node].double() - wanted(config, q[node : node + 1], keys, values, seen)[0]).abs().max()
        assert error < 0.06, (node, error)
    fresh = make(is_native, config)
    assert torch.equal(found[id(other)], compute(fresh, Sequence(fresh.pool), 2, [31], 30)[30:])


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("window", [None, 60])
def test_heads_may_keep_different_keys(is_native: bool, window: int | None):
    config = CONFIG if window is None else replace(CONFIG, windows=(window, window))
    attention, rng = make(is_native, config), random.Random(5)
    sequence = Sequence(attention.pool)
    compute(attention, sequence, 1, [100], 100)
    used = attention.pool.num_used
    kept = {}
    for head in range(2):
        kept[head] = sorted(rng.sample(range(100), 37 if head else 80))
        assert sequence.keep(0, head, np.array(kept[head]))
    assert attention.pool.num_used == used - 2 - 4
    neighbour = Sequence(attention.pool)
    compute(attention, neighbour, 2, [50], 50)
    q, k, v = rows_of(config, 1, 103)
    for at in range(100, 103):
        assert sequence.reserve(at + 1)
        assert neighbour.reserve(neighbour.num_tokens + 1)
        start = neighbour.num_tokens
        rows = {
            id(sequence): (q[at : at + 1], k[at : at + 1], v[at : at + 1]),
            id(neighbour): tuple(x[start:] for x in rows_of(config, 2, start + 1)),
        }
        found = run(attention, [Span(sequence, at, at + 1, 100), Span(neighbour, start, start + 1, 50)], rows)[id(sequence)]  # type: ignore[arg-type]
        for head in range(2):
            places = [*kept[head], *range(100, at + 1)]
            seen = torch.tensor([[p > at - window for p in places]]) if window else torch.ones(1, len(places), dtype=torch.bool)
            one = replace(config, num_heads=3, num_kv_heads=1)
            mine = slice(head * 3, head * 3 + 3)
            error = (
                found[0].view(6, -1)[mine].flatten().double()
                - wanted(one, q[at : at + 1, mine], k[places, head : head + 1], v[places, head : head + 1], seen)[0]
            )
            assert error.abs().max() < 0.06


@pytest.mark.skipif(library() is None, reason="no compiled kernel here")
def test_lse_and_merging():
    """Any cut of the keys into pieces merges to the whole; a wrong merge (plain mean) does not."""
    attention = make(True)
    sequence = Sequence(attention.pool)
    assert sequence.reserve(700)
    q, k, v = rows_of(CONFIG, 1, 700)
    plan = attention.plan([Span(sequence, 0, 700, 700)])
    out, lse = plan.attend_with_lse(0, q, k, v)  # type: ignore[attr-defined]
    rows = (x.transpose(0, 1)[None].float() for x in (q[600:].unflatten(1, (2, 3)).flatten(1, 2), k, v))
    q_BKME, keys, values = (x for x in rows)
    q_BKME = q[600:].float().view(100, 2, 3, 32).permute(1, 0, 2, 3).reshape(1, 2, 300, 32)
    at = torch.arange(600, 700).repeat_interleave(3)
    for cuts in ([0, 700], [0, 64, 700], [0, 1, 300, 650, 700]):
        pieces = []
        for a, b in itertools.pairwise(cuts):
            mask = torch.where(torch.arange(a, b) <= at[:, None], 0.0, -math.inf)
            pieces.append(attention_reference(q_BKME, keys[:, :, a:b], values[:, :, a:b], mask))
        merged, merged_lse = merge(pieces)
        found = merged[0].view(2, 100, 3, 32).transpose(0, 1).reshape(100, -1)
        assert (found - out[600:].float()).abs().max() < 0.03
        assert (merged_lse[0].view(2, 100, 3).transpose(0, 1).reshape(100, -1) - lse[600:]).abs().max() < 0.02
        if len(cuts) > 2:
            mean = torch.stack([o for o, _ in pieces]).mean(0)
            assert (mean - merged).abs().max() > 0.1


def test_merging_is_exact_and_safe_at_extremes():
    q, k, v = torch.randn(1, 1, 5, 16) * 30, torch.randn(1, 1, 40, 16) * 30, torch.randn(1, 1, 40, 16)
    mask = torch.zeros(5, 40)
    mask[0, 20:] = -math.inf
    whole = attention_reference(q, k, v, mask)
    parts = [attention_reference(q, k[:, :, a:b], v[:, :, a:b], mask[:, a:b]) for a, b in ((0, 20), (20, 40))]
    out, lse = merge(parts)
    rounding = 4 * torch.finfo(torch.float32).eps * float((q.double() @ k.double().mT).abs().max()) / 4  # of a score, which is a factor of a weight
    assert torch.allclose(out, whole[0], atol=2 * rounding * float(v.abs().max()))
    assert torch.allclose(lse, whole[1], rtol=1e-6)


def test_shared_runs_are_a_tree():
    """Every sequence's blocks are covered once, in order, level after level; what two sequences share is met together."""
    pool = make(False).pool
    trunk = Sequence(pool)
    assert trunk.reserve(330)
    trunk.num_tokens = 330
    left, right = trunk.fork(), trunk.fork()
    for s in (left, right):
        assert s.reserve(600)
        s.num_tokens = 600
    members = [left, left.fork(), right, right.fork(), trunk.fork()]
    other = Sequence(pool)
    assert other.reserve(100)
    other.num_tokens = 99
    for s in members:
        assert s.reserve(s.num_tokens + 1)
    spans = in_order([Span(s, s.num_tokens, s.num_tokens + 1, 0) for s in (*members, other)])
    runs = list(shared_runs(spans, True))
    for i, span in enumerate(spans):
        mine = sorted((r for r in runs if r[0] <= i < r[1]), key=lambda r: r[5])
        assert mine[0][3] == 0
        assert mine[-1][4] == -1
        assert all(a[4] == b[3] and a[5] + 1 == b[5] for a, b in itertools.pairwise(mine))
        assert len(mine) == (1 if span.sequence is other else 2 if span.sequence is members[4] else 3)
    assert {(r[1] - r[0], r[3], r[4]) for r in runs if r[4] >= 0} == {(5, 0, 5), (2, 5, 9)}
    assert all(r[3:] == (0, -1, 0) for r in shared_runs(spans, False))


def test_what_is_remembered_of_a_step_is_of_its_sequences():
    """Sequences that follow others in the same place of memory have their own runs."""
    attention = make(False)
    trunk = Sequence(attention.pool)
    assert trunk.reserve(200)
    trunk.num_tokens = 200
    seen: tuple[int, ...] = ()
    for shared in (0, 128) * 20:
        members = [Sequence(attention.pool, trunk.table[:, :, : shared // 16], shared) for _ in range(3)]
        for member in members:
            assert member.reserve(201)
            member.num_tokens = 200
        spans = in_order([Span(member, 200, 201, 0) for member in members])
        assert attention.groups(spans) == list(shared_runs(spans, True))
        assert attention.known[0][::2] == tuple(span.sequence.number for span in spans)
        seen += attention.known[0][::2]
        for member in members:
            member.release()
        del members, spans, member
    assert len(set(seen)) == len(seen) == 120, "a number came back"
