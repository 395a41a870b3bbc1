"""Triton kernels that write keys and values to pages and attend to them where they lie. native/paged.py launches them.

A token's keys are met in pieces; each piece leaves (out, lse), and `join` merges a token's pieces exactly. A piece is a row of
`pieces`: first token, number of tokens, slot of the partial results, first key, key after the last. Several tokens meet keys
that they share (the page table of the first of them is read), a single one its own. Rows of zeros are padding.

Shapes: B tokens, H query heads, K key heads, G = H / K, E head width, S slots, C pages of a table. M query rows of a program, N keys
met at a time.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["layer", "num_layers", "capacity"])
def write(
    k_ptr, v_ptr, k_stride, v_stride, keys, values, key_scales, value_scales, positions, tables, dropped, rows, places, layer,
    num_layers, capacity, NUM_KV: tl.constexpr, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, PAGE: tl.constexpr, IS_SCALED: tl.constexpr,
):  # fmt: skip
    """Program (token, key head): one key and one value into their slot, with the token's position."""
    token, head = tl.program_id(0), tl.program_id(1)
    row, place = tl.load(rows + token), tl.load(places + token)
    at = (row * num_layers + layer) * NUM_KV + head
    index = place - tl.load(dropped + at)
    slot = tl.load(tables + at * capacity + index // PAGE).to(tl.int64) * PAGE + index % PAGE
    e = tl.arange(0, BLOCK_E)
    inside = e < WIDTH
    k = tl.load(k_ptr + token * k_stride + head * WIDTH + e, mask=inside, other=0.0)
    v = tl.load(v_ptr + token * v_stride + head * WIDTH + e, mask=inside, other=0.0)
    if IS_SCALED:
        k_scale, v_scale = tl.max(tl.abs(k.to(tl.float32))) / 127, tl.max(tl.abs(v.to(tl.float32))) / 127
        tl.store(key_scales + slot, k_scale)
        tl.store(value_scales + slot, v_scale)
        k = rounded(k.to(tl.float32) / tl.maximum(k_scale, 1e-30)).to(tl.int8)
        v = rounded(v.to(tl.float32) / tl.maximum(v_scale, 1e-30)).to(tl.int8)
    tl.store(keys + slot * WIDTH + e, k, mask=inside)
    tl.store(values + slot * WIDTH + e, v, mask=inside)
    tl.store(positions + slot, place.to(tl.int32))


@triton.jit
def rounded(x):
    """Nearest whole number, halves to even, of |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit(do_not_specialize=["layer", "num_layers", "capacity", "num_tokens", "window"])
def attend(
    q_ptr, q_stride, keys, values, key_scales, value_scales, positions, tables, dropped, rows, places, pieces, out_parts, lse_parts,
    layer, num_layers, capacity, num_tokens, scale, softcap, window, NUM_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, IS_SCALED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Program (piece, key head): softmax over a piece's keys for the G heads of each of its tokens."""
    piece, head = pieces + tl.program_id(0) * 5, tl.program_id(1)
    first, num, part = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2)
    start, stop = tl.load(piece + 3), tl.load(piece + 4)
    if num > 0:
        m, e = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E)
        token = (first + m // GROUP).to(tl.int64)
        is_row, inside = m // GROUP < num, e < WIDTH
        place = tl.load(places + token, mask=is_row, other=-1).to(tl.int32)
        at = (tl.load(rows + first) * num_layers + layer) * NUM_KV + head
        limit = tl.where(is_row, place + 1 - tl.load(dropped + at), 0)  # keys of the table that a row may see
        stop = tl.minimum(stop, tl.max(limit))
        column = (head * GROUP + m % GROUP) * WIDTH
        q = tl.load(q_ptr + (token * q_stride + column)[:, None] + e[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        out = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
        for begin in range(start, stop, BLOCK_N):
            n = begin + tl.arange(0, BLOCK_N)
            is_key = n < stop
            page = tl.load(tables + at * capacity + n // PAGE, mask=is_key, other=0).to(tl.int64)
            slot = page * PAGE + n % PAGE
            where = slot[:, None] * WIDTH + e[None, :]
            k = tl.load(keys + where, mask=is_key[:, None] & inside[None, :], other=0)
            v = tl.load(values + where, mask=is_key[:, None] & inside[None, :], other=0)
            if IS_SCALED:
                k = (k.to(tl.float32) * tl.load(key_scales + slot, mask=is_key, other=0.0)[:, None]).to(q.dtype)
                v = (v.to(tl.float32) * tl.load(value_scales + slot, mask=is_key, other=0.0)[:, None]).to(q.dtype)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if HAS_SOFTCAP:
                score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)  # softcap * tanh(score / softcap)
            seen = (n[None, :] < limit[:, None]) & is_key[None, :]
            if HAS_WINDOW:
                position = tl.load(positions + slot, mask=is_key, other=-1)
                seen = seen & (position[None, :] > place[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            better = tl.maximum(best, tl.max(score, 1))
            shift = tl.where(better == float("-inf"), 0.0, better)  # a row that has seen nothing yet
            weight = tl.exp(score - shift[:, None])
            kept = tl.exp(best - shift)
            total = total * kept + tl.sum(weight, 1)
            out = out * kept[:, None] + tl.dot(weight.to(q.dtype), v, input_precision="ieee")
            best = better
        lse = tl.where(total > 0, tl.where(best == float("-inf"), 0.0, best) + tl.log(tl.maximum(total, 1e-37)), float("-inf"))
        out = out / tl.maximum(total, 1e-37)[:, None]
        to = (part * num_tokens + token) * (NUM_KV * GROUP) + head * GROUP + m % GROUP
        tl.store(out_parts + to[:, None] * WIDTH + e[None, :], out, mask=is_row[:, None] & inside[None, :])
        tl.store(lse_parts + to, lse, mask=is_row)


@triton.jit(do_not_specialize=["num_tokens"])
def join(
    out_parts, lse_parts, num_parts, out_ptr, lse_ptr, num_tokens, num_heads, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Program (token, query head): the exact merge of its first num_parts[token] slots, BLOCK_P at a time."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e, p = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_P)
    inside = e < WIDTH
    best = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    out = tl.zeros((BLOCK_E,), tl.float32)
    num = tl.load(num_parts + token)
    for first in range(0, num, BLOCK_P):
        is_part = first + p < num
        at = ((first + p) * num_tokens + token) * num_heads + head
        lse = tl.load(lse_parts + at, mask=is_part, other=float("-inf"))
        part = tl.load(out_parts + at[:, None] * WIDTH + e[None, :], mask=is_part[:, None] & inside[None, :], other=0.0)
        better = tl.maximum(best, tl.max(lse))
        shift = tl.where(better == float("-inf"), 0.0, better)
        kept, weight = tl.exp(best - shift), tl.exp(lse - shift)
        total = total * kept + tl.sum(weight)
        out = out * kept + tl.sum(weight[:, None] * part, 0)
        best = better
    out = out / tl.maximum(total, 1e-37)
    lse = tl.where(total > 0, tl.where(best == float("-inf"), 0.0, best) + tl.log(tl.maximum(total, 1e-37)), float("-inf"))
    to = token * num_heads + head
    tl.store(out_ptr + to * WIDTH + e, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + to, lse)
