"""The decoder: flat tokens in, hidden rows out. One forward for every family; a family is a setting of flags.

A step's new tokens of all sequences lie in one flat row of T tokens, so prefill chunks and single decode tokens batch for
free. Only attention knows which token belongs to which sequence, and it is an argument: `attend` writes the new keys and
values where its plan wants them and returns what each token read. The decoder holds weights and nothing else.

Shapes: T flat tokens, D width, H query heads, K key heads, E head width, F ffn width, V vocabulary, R rows of logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import Unsupported
from ponder.core.formats import Checkpoint, LayerBody, LayerWeights, Linear, ModelConfig, RawTensor, WeightFormat

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q_THE, k_TKE, v_TKE) -> out_TX with X = H * E

EMBED_CHUNK = 4096  # rows of the embedding decoded to float32 at a time
RUNNABLE = ("llama", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Weights and shape of a model. Immutable, holds no state of any sequence; safe to share between processes."""

    config: ModelConfig
    model_id: str  # of the checkpoint, the formats and dtype: equal only for equal results
    dtype: torch.dtype  # of activations between matrices; the residual stream is float32
    embed_VD: Tensor
    layers: tuple[LayerWeights, ...]
    bodies: tuple[LayerBody, ...]  # what computes each layer
    norm: Tensor
    head: Linear
    cos: Tensor  # [context_len, 1, E] float32, both halves
    sin: Tensor  # [context_len, 1, E] float32, first half negated

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, embedding and head included."""
        packed = sum(m.nbytes for layer in self.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down))
        return packed + self.head.nbytes + self.embed_VD.nbytes

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden rows after the final norm, [T, D] in `dtype`, of tokens [T] at absolute positions [T] (int64).

        `attend` is called once per layer, in order, with rotated q and k. Row i depends on token i and on what `attend`
        returns for it alone, bit for bit where the weight format keeps that promise.
        """
        x_TD = self.embed_VD[tokens].float()
        cos, sin = self.cos[positions], self.sin[positions]
        for index, body in enumerate(self.bodies):
            q_THE, k_TKE, v_TKE = body.before(x_TD, cos, sin)
            x_TD = body.after(x_TD, attend(index, q_THE, k_TKE, v_TKE))
        return rms_norm(x_TD, self.norm, self.config.norm_eps, self.dtype)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """float32 [R, V] next-token logits of rows that `forward` returned."""
        return self.head.apply(hidden_RD).float()


def rms_norm(x_TD: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root-mean-square norm in float32, returned in `dtype`."""
    return F.rms_norm(x_TD, (x_TD.shape[-1],), weight, eps).to(dtype)


def rotate(x_THE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over halves: (a, b) -> (a cos - b sin, b cos + a sin). Computed in float32."""
    x_THE = x_THE.float()
    num_tokens, num_heads, width = x_THE.shape
    swapped = x_THE.view(num_tokens, num_heads, 2, width // 2).flip(2).view_as(x_THE)
    return torch.addcmul(x_THE * cos, swapped, sin)


@dataclass(frozen=True)
class PlainBody:
    """A LayerBody in plain PyTorch around the packed matrices; the oracle of the fused ones."""

    layer: LayerWeights
    config: ModelConfig
    dtype: torch.dtype

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer, config = self.layer, self.config
        qkv = layer.qkv.apply(rms_norm(x_TD, layer.attn_norm, config.norm_eps, self.dtype))
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias
        qkv = qkv.view(len(qkv), -1, config.head_dim)
        num_rotated = config.num_heads + config.num_kv_heads
        qk = rotate(qkv[:, :num_rotated], cos, sin).to(self.dtype)
        return qk[:, : config.num_heads], qk[:, config.num_heads :], qkv[:, num_rotated:]

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        layer, config = self.layer, self.config
        x_TD = x_TD.add_(layer.o.apply(out_TX))
        gate_up = layer.gate_up.apply(rms_norm(x_TD, layer.ffn_norm, config.norm_eps, self.dtype))
        inner_TF = F.silu(gate_up[:, : config.ffn_dim]).mul_(gate_up[:, config.ffn_dim :])
        return x_TD.add_(layer.down.apply(inner_TF))


def load(checkpoint: Checkpoint, weights: WeightFormat, head: WeightFormat | None = None, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """Packs a checkpoint, matrix by matrix, so that the whole model is never held in float32.

    head: format of the output head; None for the same as the rest. Raises Unsupported for an unknown architecture.
    """
    config = checkpoint.config
    if config.arch not in RUNNABLE:
        raise Unsupported(f"model architecture {config.arch!r}: the decoder runs {', '.join(RUNNABLE)}")
    cos, sin = rotary_tables(config)
    head = head or weights
    layers = tuple(load_layer(checkpoint, weights, i, dtype) for i in range(config.num_layers))
    return Decoder(
        config=config,
        model_id=f"{checkpoint.model_id}/{weights.name}/{head.name}/{str(dtype).removeprefix('torch.')}",
        dtype=dtype,
        embed_VD=load_rows(checkpoint.tensor("embed"), dtype),
        layers=layers,
        bodies=tuple(weights.fuse(layer, config) or PlainBody(layer, config, dtype) for layer in layers),
        norm=load_vector(checkpoint, "norm"),
        head=head.pack((checkpoint.tensor("embed" if config.is_head_tied else "head"),)),
        cos=cos,
        sin=sin,
    )


def load_layer(checkpoint: Checkpoint, weights: WeightFormat, index: int, dtype: torch.dtype) -> LayerWeights:
    def pack(*names: str) -> Linear:
        return weights.pack(tuple(checkpoint.tensor(f"layers.{index}.{name}") for name in names))

    bias = None
    if checkpoint.config.is_qkv_biased:
        bias = torch.cat([load_vector(checkpoint, f"layers.{index}.{name}.bias") for name in "qkv"]).to(dtype)
    return LayerWeights(
        attn_norm=load_vector(checkpoint, f"layers.{index}.attn_norm"),
        qkv=pack("q", "k", "v"),
        qkv_bias=bias,
        o=pack("o"),
        ffn_norm=load_vector(checkpoint, f"layers.{index}.ffn_norm"),
        gate_up=pack("gate", "up"),
        down=pack("down"),
    )


def load_vector(checkpoint: Checkpoint, name: str) -> Tensor:
    return checkpoint.tensor(name).dense().reshape(-1)


def load_rows(raw: RawTensor, dtype: torch.dtype) -> Tensor:
    """A matrix in `dtype`, decoded a few thousand rows at a time."""
    rows = torch.empty(raw.shape, dtype=dtype)
    for start in range(0, len(rows), EMBED_CHUNK):
        stop = min(start + EMBED_CHUNK, len(rows))
        rows[start:stop] = raw.dense(start, stop)
    return rows


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and signed sin, [context_len, 1, E] float32 each, laid out for `rotate`."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
    if config.rope_factors is not None:
        frequency = frequency / torch.tensor(config.rope_factors, dtype=torch.float64)
    angle = torch.outer(torch.arange(config.context_len, dtype=torch.float64), frequency)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
