"""A layer body on a card: four products of PyTorch's and six Triton kernels, where plain PyTorch launches thirty operations.

Launching an operation costs a card about as long as a small one runs; for few tokens that is most of a layer. `fuse` declines what the
kernels do not know, and is not there without Triton (native/paged.py).

Shapes: T flat tokens, D width, H query heads, K key heads, E head width, F ffn width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.core.formats import LayerBody, LayerWeights, Linear, ModelConfig
from ponder.native import paged

try:
    from ponder.native import rows_triton as kernels
except ImportError:  # Triton is no dependency
    kernels = None  # type: ignore[assignment]

HONOURED = {"qk_norm", "has_pre_norms", "has_post_norms", "activation", "query_scale"}  # of core.formats.BODY_SETTINGS
GATE_BLOCK = 1024  # columns of a program
MAX_FEW = 2  # rows that meet a matrix by `few_rows`: it reads as fast as the card can, and norms, gates and sums cost no launch of their own
MAX_SOME = 16  # rows that can meet it by `some_rows`: gates and sums cost no launch of their own


@dataclass(frozen=True)
class DeviceBody:
    """A LayerBody. The residual stream is float32, all between in `dtype`; sums as in the plain body, but for their order."""

    layer: LayerWeights
    config: ModelConfig
    most: ClassVar[int] = MAX_FEW  # rows that go through `some_rows`; MAX_SOME once benchmarks/spec_device.py --profile has seen it pay on a card

    @property
    def of_prompts(self) -> LayerBody:
        return self

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer, config = self.layer, self.config
        if self.is_few(x_TD, self.most) and not self.is_few(x_TD) and config.qk_norm == "none":
            read = normed(x_TD, None, layer.attn_norm, config.norm_eps, dtype=self.dtype)
            qkv = some_qkv(read, self.weight(layer.qkv), layer, config, cos=cos, sin=sin)
        elif self.is_few(x_TD) and config.qk_norm == "none":
            qkv = few_qkv(x_TD, self.weight(layer.qkv), layer, config, cos=cos, sin=sin)
        else:
            qkv = layer.qkv.apply(normed(x_TD, None, layer.attn_norm, config.norm_eps, dtype=self.dtype))
            finish_qkv(qkv, layer, config, cos=cos, sin=sin)
        heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        q_THE, k_TKE, v_TKE = qkv.view(len(qkv), -1, config.head_dim).split(heads, 1)
        return q_THE, k_TKE, v_TKE

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        layer, config = self.layer, self.config
        assert layer.gate_up is not None
        assert layer.down is not None
        if self.is_few(x_TD):
            few_rows(out_TX, self.weight(layer.o), into=x_TD)
            act_TF = few_rows(x_TD, self.weight(layer.gate_up), norm=layer.ffn_norm, eps=config.norm_eps, activation=config.activation)
            return few_rows(act_TF, self.weight(layer.down), into=x_TD)
        if self.is_few(x_TD, self.most):
            some_rows(out_TX, self.weight(layer.o), into=x_TD)
            read = normed(x_TD, None, layer.ffn_norm, config.norm_eps, dtype=self.dtype)
            act_TF = some_rows(read, self.weight(layer.gate_up), activation=config.activation)
            return some_rows(act_TF, self.weight(layer.down), into=x_TD)
        added = self._post_normed(layer.o.apply(out_TX), layer.attn_post_norm)
        gate_up = layer.gate_up.apply(normed(x_TD, added, layer.ffn_norm, config.norm_eps, dtype=self.dtype))
        act_TF = gated(gate_up, config.activation)
        normed(x_TD, self._post_normed(layer.down.apply(act_TF), layer.ffn_post_norm), None, config.norm_eps, dtype=None)
        return x_TD

    @property
    def dtype(self) -> torch.dtype:
        return self.weight(self.layer.qkv).dtype

    def is_few(self, x_TD: Tensor, most: int = MAX_FEW) -> bool:
        """Whether the rows are at most so many, and the layer one of `few_rows` and `some_rows`, which know norms before the products only."""
        return len(x_TD) <= most and self.config.has_pre_norms and not self.config.has_post_norms

    @staticmethod
    def weight(linear: Linear) -> Tensor:
        return linear.weight  # type: ignore[attr-defined, no-any-return]

    def _post_normed(self, x_TD: Tensor, weight: Tensor | None) -> Tensor:
        return x_TD if weight is None else normed(x_TD.float(), None, weight, self.config.norm_eps, dtype=torch.float32)


def normed(x_TD: Tensor, more_TD: Tensor | None, weight: Tensor | None, eps: float, *, dtype: torch.dtype | None) -> Tensor:
    """x (float32) += more, in place; returns its root-mean-square norm in `dtype`, or x where dtype is None; x itself, rounded, without a weight."""
    num, width = x_TD.shape
    has_out = dtype is not None and weight is not None
    out = torch.empty(num, width, dtype=dtype, device=x_TD.device) if has_out else x_TD
    if has_out or more_TD is not None:
        kernels.add_norm[(num,)](
            x_TD, more_TD if more_TD is not None else x_TD, weight if has_out else x_TD, out, eps, D=width, BLOCK_D=1 << (width - 1).bit_length(),
            HAS_MORE=more_TD is not None, HAS_OUT=has_out,
        )  # fmt: skip
    return out if dtype is None else out.to(dtype)


def finish_qkv(qkv_TX: Tensor, layer: LayerWeights, config: ModelConfig, *, cos: Tensor, sin: Tensor) -> None:
    """In place: bias, norms of heads, rotation and scale."""
    num_heads, width = config.num_heads + 2 * config.num_kv_heads, config.head_dim
    bias, q_norm, k_norm = (x if x is not None else qkv_TX for x in (layer.qkv_bias, layer.q_norm, layer.k_norm))
    kernels.finish_qkv[(len(qkv_TX), num_heads)](
        qkv_TX, bias, q_norm, k_norm, cos, sin, config.norm_eps, float(config.query_scale), NUM_HEADS=config.num_heads, NUM_KV=config.num_kv_heads,
        E=width, BLOCK_HALF=1 << (width // 2 - 1).bit_length(), HAS_BIAS=layer.qkv_bias is not None, HAS_NORM=layer.q_norm is not None,
    )  # fmt: skip


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up of [T, 2 F]."""
    num, width = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(num, width, dtype=gate_up.dtype, device=gate_up.device)
    kernels.gate[(num, -(-width // GATE_BLOCK))](gate_up, out, F=width, BLOCK_F=GATE_BLOCK, IS_GELU=activation == "gelu")
    return out


def few_rows(
    x_TD: Tensor, weight: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, activation: str | None = None, into: Tensor | None = None
) -> Tensor:
    """weight norm(x) in the weight's dtype; gated where an activation is named; added to `into` (float32), which is then what is returned."""
    num_out, width = len(weight) // (1 if activation is None else 2), weight.shape[1]
    out = torch.empty(len(x_TD), num_out, dtype=weight.dtype, device=x_TD.device) if into is None else into
    block_n, block_d, num_warps = blocks_of(num_out, width, is_paired=activation is not None)
    kernels.few_rows[(len(x_TD), -(-num_out // block_n))](
        x_TD, weight, norm if norm is not None else x_TD, out, eps, N=num_out, D=width, BLOCK_N=block_n, BLOCK_D=block_d,
        BLOCK_ALL=1 << (width - 1).bit_length(), HAS_NORM=norm is not None, IS_GATED=activation is not None, IS_ADDED=into is not None,
        IS_GELU=activation == "gelu", num_warps=num_warps,
    )  # fmt: skip
    return out


def few_qkv(x_TD: Tensor, weight: Tensor, layer: LayerWeights, config: ModelConfig, *, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, (H + 2 K) * E]: norm, product, bias, rotation and scale of few rows, of layers without norms of heads."""
    num_out, width = weight.shape
    block_n, block_d, num_warps = blocks_of(num_out // 2, width, is_paired=True)
    qkv = torch.empty(len(x_TD), num_out, dtype=weight.dtype, device=x_TD.device)
    kernels.few_qkv[(len(x_TD), -(-num_out // 2 // block_n))](
        x_TD, weight, layer.attn_norm, layer.qkv_bias if layer.qkv_bias is not None else qkv, cos, sin, qkv, config.norm_eps,
        float(config.query_scale),
        NUM_HEADS=config.num_heads, NUM_KV=config.num_kv_heads, E=config.head_dim, D=width, BLOCK_N=block_n, BLOCK_D=block_d,
        BLOCK_ALL=1 << (width - 1).bit_length(), HAS_BIAS=layer.qkv_bias is not None, num_warps=num_warps,
    )  # fmt: skip
    return qkv


def some_rows(x_TD: Tensor, weight: Tensor, *, activation: str | None = None, into: Tensor | None = None) -> Tensor:
    """weight x of up to MAX_SOME rows in the weight's dtype, otherwise as `few_rows`."""
    num_out, width = len(weight) // (1 if activation is None else 2), weight.shape[1]
    out = torch.empty(len(x_TD), num_out, dtype=weight.dtype, device=x_TD.device) if into is None else into
    x_TD = x_TD if x_TD.is_contiguous() else x_TD.contiguous()
    block_n, block_d, num_warps, num_stages = some_blocks_of(num_out, width, is_paired=activation is not None)
    kernels.some_rows[(-(-num_out // block_n),)](
        x_TD, weight, out, len(x_TD), N=num_out, D=width, BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_T=MAX_SOME, IS_GATED=activation is not None,
        IS_ADDED=into is not None, IS_GELU=activation == "gelu", num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out


def some_qkv(x_TD: Tensor, weight: Tensor, layer: LayerWeights, config: ModelConfig, *, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, (H + 2 K) * E] of normed rows: product, bias, rotation and scale, of layers without norms of heads."""
    num_out, width = weight.shape
    block_n, block_d, num_warps, num_stages = some_blocks_of(num_out // 2, width, is_paired=True)
    qkv = torch.empty(len(x_TD), num_out, dtype=weight.dtype, device=x_TD.device)
    kernels.some_qkv[(-(-num_out // 2 // block_n),)](
        x_TD, weight, layer.qkv_bias if layer.qkv_bias is not None else qkv, cos, sin, qkv, float(config.query_scale), len(x_TD),
        NUM_HEADS=config.num_heads, NUM_KV=config.num_kv_heads, E=config.head_dim, D=width, BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_T=MAX_SOME,
        HAS_BIAS=layer.qkv_bias is not None, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return qkv


def some_blocks_of(num_out: int, width: int, *, is_paired: bool) -> tuple[int, int, int, int]:
    """(outputs, inputs at a time, warps, stages) of a program of `products_of_some`."""
    return 16, min(256, max(16, 1 << (width - 1).bit_length())), 4, 4


def blocks_of(num_out: int, width: int, *, is_paired: bool) -> tuple[int, int, int]:
    """(outputs, inputs at a time, warps) of a program of `products`: the best of a trial on an H100 (benchmarks/gpu_rows.py)."""
    block_d = min(2048 if is_paired or width <= 2048 else 1024, 1 << (width - 1).bit_length())
    return (2, block_d, 8) if is_paired else (4, block_d, 8 if block_d == 2048 else 4)


def fuse(layer: LayerWeights, config: ModelConfig, device: torch.device) -> DeviceBody | None:
    """The body of a layer of dense matrices on `device`; None where it has settings that the kernels do not know."""
    is_known = config.unusual <= HONOURED and layer.experts is None and config.qk_norm != "row" and config.head_dim % 2 == 0
    return DeviceBody(layer, config) if is_known and paged.is_here(device) else None
