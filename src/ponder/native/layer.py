"""The compiled layer bodies (layer.cpp, prompt.cpp), seen from Python: one call before attention, one after.

Shapes: T flat tokens, D width, H query heads, K key heads, E head width, J = H + 2 K, X = H * E.
"""

import ctypes
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ponder.core.formats import LayerWeights, Linear, ModelConfig
from ponder.native.matrix import MatrixStruct, NativeLinear, i32, pointer

HONOURED = {"qk_norm", "has_pre_norms", "has_post_norms", "activation", "query_scale", "num_experts"}  # of core.formats.BODY_SETTINGS
MAX_HELD = 128  # rows of a buffer that is kept
NORMS = ("attn_norm", "ffn_norm", "attn_post_norm", "ffn_post_norm", "q_norm", "k_norm")


class LayerStruct(ctypes.Structure):
    _fields_ = (
        [(name, MatrixStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")]
        + [(name, pointer) for name in (*NORMS, "bias")]
        + [(name, ctypes.c_float) for name in ("eps", "query_scale")]
        + [(name, i32) for name in ("dim", "num_heads", "num_kv_heads", "head_dim", "ffn_dim", "is_gelu", "is_row_normed")]
    )


class Buffers(threading.local):
    """What `before` returns, one for all layers: it is no longer needed after `after`, and a new one costs as much as the rest of the call."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, tuple[int, ...], int], tuple[int, tuple[Tensor, ...]]] = {}

    def take(self, num: int, heads: tuple[int, ...], width: int) -> tuple[int, tuple[Tensor, ...]]:
        """(address, bfloat16 [num, h, width] of each h in heads)."""
        key = (num, heads, width)
        found = self.held.get(key)
        if found is None:
            qkv = torch.empty((num, sum(heads), width), dtype=torch.bfloat16)
            found = qkv.data_ptr(), tuple(qkv.split_with_sizes(heads, 1))
            if num <= MAX_HELD:
                self.held[key] = found
        return found


buffers = Buffers()


class NativeBody:
    """A LayerBody, bfloat16 between layer and attention. Rows are computed each for itself, bit for bit.

    What `before` returns is valid until the thread's next `before`, of any layer.
    """

    def __init__(self, struct: LayerStruct, lib: ctypes.CDLL, held: object, *, kind: str = "layer") -> None:
        """held: what the struct points to; kind: "layer", or "prompt" for the calls of prompt.cpp."""
        self.struct, self.held = struct, held
        self.address = ctypes.addressof(struct)
        self.call_before, self.call_after = getattr(lib, f"{kind}_before"), getattr(lib, f"{kind}_after")
        self.call_before.argtypes = [pointer, i32, pointer, pointer, pointer, pointer, i32]
        self.call_after.argtypes = [pointer, i32, pointer, pointer, i32]
        self.call_before.restype = self.call_after.restype = None
        self.heads = (struct.num_heads, struct.num_kv_heads, struct.num_kv_heads)
        self.head_dim = int(struct.head_dim)
        self.of_prompts = NativeBody(struct, lib, held, kind="prompt") if kind == "layer" and lib.prompt_is_supported() else self

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num, x_TD, cos, sin = x_TD.shape[0], x_TD.contiguous(), cos.contiguous(), sin.contiguous()
        address, (q_THE, k_TKE, v_TKE) = buffers.take(num, self.heads, self.head_dim)
        self.call_before(self.address, num, x_TD.data_ptr(), cos.data_ptr(), sin.data_ptr(), address, torch.get_num_threads())
        return q_THE, k_TKE, v_TKE

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        x_TD, out_TX = x_TD.contiguous(), out_TX.contiguous()
        self.call_after(self.address, x_TD.shape[0], x_TD.data_ptr(), out_TX.data_ptr(), torch.get_num_threads())
        return x_TD


def fuse(layer: LayerWeights, config: ModelConfig) -> NativeBody | None:
    """The body of a layer whose matrices are all NativeLinear, q, k, v and gate, up in parts; None where it has settings we do not honour."""
    matrices = (layer.qkv, layer.o, layer.gate_up, layer.down)
    if not all(isinstance(m, NativeLinear) for m in matrices) or layer.experts is not None or not config.unusual <= HONOURED:
        return None
    qkv, o, gate_up, down = matrices
    assert isinstance(qkv, NativeLinear)
    assert isinstance(o, NativeLinear)
    assert isinstance(gate_up, NativeLinear)
    assert isinstance(down, NativeLinear)
    if (len(qkv.parts), len(gate_up.parts)) != (3, 2) or config.head_dim % 2:
        return None
    norms = [None if (norm := getattr(layer, name)) is None else norm.float().contiguous() for name in NORMS]
    bias = None if layer.qkv_bias is None else layer.qkv_bias.float().contiguous()
    parts = [part.struct for part in (*qkv.parts, *o.parts, *gate_up.parts, *down.parts)]
    struct = LayerStruct(
        *parts, *(None if x is None else x.data_ptr() for x in (*norms, bias)), config.norm_eps, config.query_scale, config.dim, config.num_heads,
        config.num_kv_heads, config.head_dim, gate_up.parts[0].struct.rows, config.activation == "gelu", config.qk_norm == "row",
    )  # fmt: skip
    return NativeBody(struct, qkv.lib, (qkv, o, gate_up, down, norms, bias))


def prompt_product(linear: Linear, max_kept: int = 1 << 30) -> Callable[[Tensor], Tensor] | None:
    """What a prompt's body multiplies by a matrix: bfloat16 [rows, in_features] -> float32 [rows, out_features]. None where it is as elsewhere.

    max_kept: rows of the result that are kept, the last ones; fewer than there are measure the product without its way to memory.
    """
    if not isinstance(linear, NativeLinear) or not linear.lib.prompt_is_supported():
        return None
    apply = linear.lib.prompt_apply
    apply.argtypes, apply.restype = [pointer, i32, i32, pointer, pointer, i32, i32], None

    def product(x: Tensor) -> Tensor:
        num_kept = min(len(x), max_kept)
        x, y = x.bfloat16().contiguous(), torch.empty(num_kept, linear.num_rows)
        apply(linear.structs, len(linear.parts), len(x), x.data_ptr(), y.data_ptr(), num_kept, torch.get_num_threads())
        return y

    return product
