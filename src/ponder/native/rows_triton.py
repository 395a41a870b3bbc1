"""Triton kernels over the rows of a layer: norms, what follows the product of q, k and v, the gate, products of few rows.
native/rows.py launches them.

Shapes: T tokens, D width, J = H + 2 K heads, E head width, F ffn width.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["eps"])
def add_norm(
    x_ptr, more_ptr, weight_ptr, out_ptr, eps, D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_MORE: tl.constexpr, HAS_OUT: tl.constexpr
):  # fmt: skip
    """Program (token): x += more, out = x / rms(x) * weight. x is float32."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    x = tl.load(x_ptr + row * D + d, mask=inside, other=0.0)
    if HAS_MORE:
        x += tl.load(more_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_ptr + row * D + d, x, mask=inside)
    if HAS_OUT:
        scale = 1 / tl.sqrt(tl.sum(x * x) / D + eps)
        out = x * scale * tl.load(weight_ptr + d, mask=inside, other=0.0)
        tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["eps"])
def finish_qkv(
    qkv_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, eps, query_scale, NUM_HEADS: tl.constexpr, NUM_KV: tl.constexpr,
    E: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Program (token, head), in place: bias, norm of each head, rotation by halves, scale of q. v gets its bias alone."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = E // 2
    e = tl.arange(0, BLOCK_HALF)
    inside = e < half
    at = qkv_ptr + (token * (NUM_HEADS + 2 * NUM_KV) + head) * E + e
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    dtype = qkv_ptr.dtype.element_ty
    if HAS_BIAS:  # rounded as the plain body rounds
        a = (a + tl.load(bias_ptr + head * E + e, mask=inside, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
        b = (b + tl.load(bias_ptr + head * E + half + e, mask=inside, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    if head < NUM_HEADS + NUM_KV:
        if HAS_NORM:
            weight_ptr = q_norm_ptr
            if head >= NUM_HEADS:
                weight_ptr = k_norm_ptr
            scale = 1 / tl.sqrt((tl.sum(a * a) + tl.sum(b * b)) / E + eps)
            a = a * scale * tl.load(weight_ptr + e, mask=inside, other=0.0)
            b = b * scale * tl.load(weight_ptr + half + e, mask=inside, other=0.0)
        cos_a, cos_b = tl.load(cos_ptr + token * E + e, mask=inside, other=0.0), tl.load(cos_ptr + token * E + half + e, mask=inside, other=0.0)
        sin_a, sin_b = tl.load(sin_ptr + token * E + e, mask=inside, other=0.0), tl.load(sin_ptr + token * E + half + e, mask=inside, other=0.0)
        turned_a = a * cos_a + b * sin_a
        turned_b = b * cos_b + a * sin_b
        factor = tl.where(head < NUM_HEADS, query_scale, 1.0)
        a, b = turned_a * factor, turned_b * factor
    tl.store(at, a.to(dtype), mask=inside)
    tl.store(at + half, b.to(dtype), mask=inside)


@triton.jit
def gate(gate_up_ptr, out_ptr, F: tl.constexpr, BLOCK_F: tl.constexpr, IS_GELU: tl.constexpr):
    """Program (token, part of F): act(gate) * up."""
    token = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < F
    g = tl.load(gate_up_ptr + token * 2 * F + f, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * F + F + f, mask=inside, other=0.0).to(tl.float32)
    if IS_GELU:
        inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        act = g * tl.sigmoid(2 * inner)  # 0.5 g (1 + tanh(inner))
    else:
        act = g * tl.sigmoid(g)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + token * F + f, (act.to(dtype).to(tl.float32) * up).to(dtype), mask=inside)


@triton.jit
def products(
    x_ptr, norm_ptr, eps, first, second, is_row, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ALL: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_SECOND: tl.constexpr,
):  # fmt: skip
    """Two matrices' rows (pointers [BLOCK_N] to their beginnings) times one row x, or its norm, rounded to the matrix's type; read once by whole
    threads, which is all that a few rows are."""
    dtype = first.dtype.element_ty
    scale = 1.0
    if HAS_NORM:
        all_d = tl.arange(0, BLOCK_ALL)
        whole = tl.load(x_ptr + all_d, mask=all_d < D, other=0.0)
        scale = 1 / tl.sqrt(tl.sum(whole * whole) / D + eps)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    other = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in tl.static_range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = is_row[:, None] & (d < D)[None, :]
        weight = tl.load(first[:, None] + d[None, :], mask=inside, other=0.0)
        x = tl.load(x_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        if HAS_NORM:
            x = (x * scale * tl.load(norm_ptr + d, mask=d < D, other=0.0)).to(dtype).to(tl.float32)
        total += weight.to(tl.float32) * x[None, :]
        if HAS_SECOND:
            other += tl.load(second[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32) * x[None, :]
    return tl.sum(total, 1).to(dtype).to(tl.float32), tl.sum(other, 1).to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["eps"])
def few_rows(
    x_ptr, weight_ptr, norm_ptr, out_ptr, eps, N: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_ALL: tl.constexpr, HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr, IS_ADDED: tl.constexpr, IS_GELU: tl.constexpr,
):  # fmt: skip
    """Program (row, block of outputs): y = W norm(x); with IS_GATED the rows n and N + n of W become act(y[n]) * y[N + n]; with IS_ADDED
    out (float32) += y."""
    row, n = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < N
    dtype = weight_ptr.dtype.element_ty
    first = weight_ptr + n.to(tl.int64) * D
    y, up = products(x_ptr + row * D, norm_ptr, eps, first, first + N * D, is_row, D, BLOCK_N, BLOCK_D, BLOCK_ALL, HAS_NORM, IS_GATED)
    if IS_GATED:
        act = y * tl.sigmoid(2 * 0.7978845608028654 * (y + 0.044715 * y * y * y)) if IS_GELU else y * tl.sigmoid(y)
        y = act.to(dtype).to(tl.float32) * up
    to = out_ptr + row * N + n
    if IS_ADDED:
        y += tl.load(to, mask=is_row, other=0.0)
    tl.store(to, y.to(out_ptr.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["eps"])
def few_qkv(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, cos_ptr, sin_ptr, out_ptr, eps, query_scale, NUM_HEADS: tl.constexpr, NUM_KV: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ALL: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Program (row, block of a head's first half): norm, product, bias, rotation with the other half, scale of q."""
    row, pair = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    half = E // 2
    head, e = pair // half, pair % half
    is_row = head < NUM_HEADS + 2 * NUM_KV
    dtype = weight_ptr.dtype.element_ty
    n = head * E + e
    first = weight_ptr + n.to(tl.int64) * D
    cos_a, cos_b = tl.load(cos_ptr + row * E + e), tl.load(cos_ptr + row * E + half + e)
    sin_a, sin_b = tl.load(sin_ptr + row * E + e), tl.load(sin_ptr + row * E + half + e)
    bias_a, bias_b = 0.0, 0.0
    if HAS_BIAS:
        bias_a = tl.load(bias_ptr + n, mask=is_row, other=0.0).to(tl.float32)
        bias_b = tl.load(bias_ptr + n + half, mask=is_row, other=0.0).to(tl.float32)
    a, b = products(x_ptr + row * D, norm_ptr, eps, first, first + half * D, is_row, D, BLOCK_N, BLOCK_D, BLOCK_ALL, True, True)
    if HAS_BIAS:
        a, b = (a + bias_a).to(dtype).to(tl.float32), (b + bias_b).to(dtype).to(tl.float32)
    factor = tl.where(head < NUM_HEADS, query_scale, 1.0)
    is_turned = head < NUM_HEADS + NUM_KV
    to = out_ptr + row * (NUM_HEADS + 2 * NUM_KV) * E + n
    tl.store(to, tl.where(is_turned, (a * cos_a + b * sin_a) * factor, a).to(dtype), mask=is_row)
    tl.store(to + half, tl.where(is_turned, (b * cos_b + a * sin_b) * factor, b).to(dtype), mask=is_row)


@triton.jit
def products_of_some(
    x_ptr, num, first, second, is_row, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, HAS_SECOND: tl.constexpr
):  # fmt: skip
    """Two matrices' rows (pointers [BLOCK_N] to their beginnings) times `num` rows x of the matrix's type, [BLOCK_N, BLOCK_T], by tensor cores: the
    matrix is read once for all."""
    dtype = first.dtype.element_ty
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    other = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = is_row[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + t[None, :] * D + d[:, None], mask=(t < num)[None, :] & (d < D)[:, None], other=0.0)
        weight = tl.load(first[:, None] + d[None, :], mask=inside, other=0.0)
        total = tl.dot(weight, x, total, input_precision="ieee")
        if HAS_SECOND:
            other = tl.dot(tl.load(second[:, None] + d[None, :], mask=inside, other=0.0), x, other, input_precision="ieee")
    return total.to(dtype).to(tl.float32), other.to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["num"])
def some_rows(
    x_ptr, weight_ptr, out_ptr, num, N: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    IS_GATED: tl.constexpr, IS_ADDED: tl.constexpr, IS_GELU: tl.constexpr,
):  # fmt: skip
    """Program (block of outputs): x W^T of `num` rows, or act(gate) * up of W = [gate; up]; added to out, float32, where IS_ADDED."""
    n, t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    is_row = n < N
    dtype = weight_ptr.dtype.element_ty
    first = weight_ptr + n.to(tl.int64) * D
    y, up = products_of_some(x_ptr, num, first, first + N * D, is_row, D, BLOCK_N, BLOCK_D, BLOCK_T, IS_GATED)
    if IS_GATED:
        act = y * tl.sigmoid(2 * 0.7978845608028654 * (y + 0.044715 * y * y * y)) if IS_GELU else y * tl.sigmoid(y)
        y = act.to(dtype).to(tl.float32) * up
    to = out_ptr + t[None, :] * N + n[:, None]
    inside = is_row[:, None] & (t < num)[None, :]
    if IS_ADDED:
        y += tl.load(to, mask=inside, other=0.0)
    tl.store(to, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num"])
def some_qkv(
    x_ptr, weight_ptr, bias_ptr, cos_ptr, sin_ptr, out_ptr, query_scale, num, NUM_HEADS: tl.constexpr, NUM_KV: tl.constexpr, E: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Program (block of a head's first half): product of `num` rows, bias, rotation with the other half, scale of q."""
    pair, t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    half = E // 2
    head, e = pair // half, pair % half
    is_row = head < NUM_HEADS + 2 * NUM_KV
    inside = is_row[:, None] & (t < num)[None, :]
    dtype = weight_ptr.dtype.element_ty
    n = head * E + e
    first = weight_ptr + n.to(tl.int64) * D
    a, b = products_of_some(x_ptr, num, first, first + half * D, is_row, D, BLOCK_N, BLOCK_D, BLOCK_T, True)
    if HAS_BIAS:
        a = (a + tl.load(bias_ptr + n, mask=is_row, other=0.0).to(tl.float32)[:, None]).to(dtype).to(tl.float32)
        b = (b + tl.load(bias_ptr + n + half, mask=is_row, other=0.0).to(tl.float32)[:, None]).to(dtype).to(tl.float32)
    angle = t[None, :] * E + e[:, None]
    cos_a, cos_b = tl.load(cos_ptr + angle, mask=inside, other=0.0), tl.load(cos_ptr + angle + half, mask=inside, other=0.0)
    sin_a, sin_b = tl.load(sin_ptr + angle, mask=inside, other=0.0), tl.load(sin_ptr + angle + half, mask=inside, other=0.0)
    factor = tl.where(head < NUM_HEADS, query_scale, 1.0)[:, None]
    is_turned = (head < NUM_HEADS + NUM_KV)[:, None]
    to = out_ptr + t[None, :] * ((NUM_HEADS + 2 * NUM_KV) * E) + n[:, None]
    tl.store(to, tl.where(is_turned, (a * cos_a + b * sin_a) * factor, a).to(dtype), mask=inside)
    tl.store(to + half, tl.where(is_turned, (b * cos_b + a * sin_b) * factor, b).to(dtype), mask=inside)
