"""Triton kernels of the draw: noise, sums and choice over rows of logits. native/draw.py launches them.

A row is cut into parts of SLICE logits, one program each; blocks of BLOCK logits are summed in float32, all beyond in float64.

Shapes: R rows, V vocabulary, P parts, N blocks.
"""

import triton
import triton.language as tl


@triton.jit
def find_tops(logits, tops, places, V: tl.constexpr, SLICE: tl.constexpr):
    """Program (row, part): the largest logit of the part, and the first place that has it."""
    row, part = tl.program_id(0), tl.program_id(1)
    i = part * SLICE + tl.arange(0, SLICE)
    x = tl.load(logits + row.to(tl.int64) * V + i, mask=i < V, other=float("-inf"))
    top = tl.max(x)
    to = row * tl.num_programs(1) + part
    tl.store(tops + to, top)
    tl.store(places + to, tl.min(tl.where(x == top, i, V)))


@triton.jit
def sum_blocks(
    logits, tops, temperatures, weights, totals, belows, V: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, part): of x - top, the sums of exponentials at the row's temperature, per block, and at 1 and of x - top itself, per part."""
    row, part = tl.program_id(0), tl.program_id(1)
    p = tl.arange(0, BLOCK_P)
    num: tl.constexpr = SLICE // BLOCK
    top = tl.max(tl.load(tops + row * P + p, mask=p < P, other=float("-inf")))
    temperature = tl.load(temperatures + row)
    scale = 1.0 / tl.where(temperature > 0, temperature, 1.0)
    i = part * SLICE + tl.arange(0, num)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    below = tl.load(logits + row.to(tl.int64) * V + i, mask=i < V, other=float("-inf")) - top
    sums = tl.sum(tl.exp(below * scale), 1)
    tl.store(weights + (row * P + part) * num + tl.arange(0, num), sums.to(tl.float64))
    tl.store(totals + row * P + part, tl.sum(tl.sum(tl.exp(below), 1).to(tl.float64)))
    tl.store(belows + row * P + part, tl.sum(tl.sum(tl.where(i < V, below, 0.0), 1).to(tl.float64)))


@triton.jit
def mixed(x):
    """The finaliser of splitmix64, of uint64."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def choose(
    logits, tops, places, temperatures, weights, totals, belows, seeds, positions, out, V: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row): token, log_p, log_q and certainty, float64 [4]."""
    row = tl.program_id(0)
    p, n, b = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK)
    part_tops = tl.load(tops + row * P + p, mask=p < P, other=float("-inf"))
    top = tl.max(part_tops)
    greedy = tl.min(tl.where((part_tops == top) & (p < P), tl.load(places + row * P + p, mask=p < P, other=V), V))
    temperature = tl.load(temperatures + row)
    is_hot = temperature > 0
    scale = 1.0 / tl.where(is_hot, temperature, 1.0)
    state = mixed(tl.load(seeds + row).to(tl.uint64, bitcast=True))
    bits = mixed(state + tl.load(positions + row).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15)
    probe = (bits >> 11).to(tl.float64) * 1.1102230246251565e-16
    weight = tl.load(weights + row * N + n, mask=n < N, other=0.0)
    passed = tl.cumsum(weight)
    total = tl.sum(tl.where(n == N - 1, passed, 0.0))
    target = probe * total
    block = tl.sum((passed <= target).to(tl.int32))  # the first that passes the target
    last = tl.max(tl.where(weight > 0, n, 0))
    is_full = tl.sum(tl.where(n == block, weight, 0.0)) > 0
    block = tl.where(is_full, block, last)
    before = tl.sum(tl.where(n == block - 1, passed, 0.0))
    i = block * BLOCK + b
    x = tl.load(logits + row.to(tl.int64) * V + i, mask=i < V, other=float("-inf")) - top
    inside = tl.exp(x * scale)
    at = tl.sum((tl.cumsum(inside.to(tl.float64)) <= target - before).to(tl.int32))
    token = block * BLOCK + tl.minimum(at, tl.max(tl.where(inside > 0, b, 0)))
    token = tl.where(is_hot, token, greedy)
    below = tl.load(logits + row.to(tl.int64) * V + token) - top
    log_sum = tl.log(tl.sum(tl.load(totals + row * P + p, mask=p < P, other=0.0)))
    log_p = below.to(tl.float64) - log_sum
    shaped = (below * scale).to(tl.float64) - tl.log(total)
    mean = tl.sum(tl.load(belows + row * P + p, mask=p < P, other=0.0)) / V
    tl.store(out + row * 4, token.to(tl.float64))
    tl.store(out + row * 4 + 1, log_p)
    tl.store(out + row * 4 + 2, tl.where(is_hot, tl.where(temperature == 1.0, log_p, shaped), 0.0))
    tl.store(out + row * 4 + 3, log_sum - mean - tl.log(tl.full((), V, tl.float64)))
