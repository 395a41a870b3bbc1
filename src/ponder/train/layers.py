"""A model's own layers in plain PyTorch, so that gradients pass through them.

Shapes: B texts of T tokens each, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import Unsupported
from ponder.core.formats import FeedForward
from ponder.models.decoder import Decoder, feed_forward, rms_norm, rotate


def check_open(decoder: Decoder) -> None:
    """Raises Unsupported."""
    config = decoder.config
    if decoder.dtype != torch.float32 or config.unusual or any(config.windows) or config.attn_softcap or config.head_softcap:
        raise Unsupported(f"training beside a {config.arch} model in {decoder.dtype}: open a Llama or a Qwen2 with float32 weights")


def between(decoder: Decoder, x_BTD: Tensor, layers: Sequence[int]) -> Tensor:
    """The states behind the model's own layers."""
    config = decoder.config
    parts = [config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.num_kv_heads * config.head_dim]
    for index in layers:
        layer = decoder.layers[index]
        qkv = layer.qkv.apply(normed(decoder, x_BTD, layer.attn_norm))
        qkv = qkv if layer.qkv_bias is None else qkv + layer.qkv_bias
        x_BTD = behind_layer(decoder, index, x_BTD, qkv.split(parts, -1))
    return x_BTD


def behind_layer(decoder: Decoder, index: int, x_BTD: Tensor, qkv: Sequence[Tensor]) -> Tensor:
    """The states behind a layer whose queries, keys and values are these, not rotated yet."""
    q, k, v = qkv
    layer, width, (num_texts, num) = decoder.layers[index], decoder.config.head_dim, x_BTD.shape[:2]
    cos, sin = decoder.tables[decoder.table_of[index]].at(torch.arange(num).repeat(num_texts))

    def heads(x: Tensor, is_rotated: bool) -> Tensor:
        x_THE = x.reshape(num_texts * num, -1, width)
        return (rotate(x_THE, cos, sin) if is_rotated else x_THE).view(num_texts, num, -1, width).transpose(1, 2)

    out = F.scaled_dot_product_attention(heads(q, True), heads(k, True), heads(v, False), is_causal=True, enable_gqa=True)
    x_BTD = x_BTD + layer.o.apply(out.transpose(1, 2).flatten(2))
    assert layer.gate_up is not None
    assert layer.down is not None
    return x_BTD + feed_forward(normed(decoder, x_BTD, layer.ffn_norm), FeedForward(layer.gate_up, layer.down), decoder.config.activation)


def normed(decoder: Decoder, x_BTD: Tensor, weight: Tensor | None) -> Tensor:
    return x_BTD if weight is None else rms_norm(x_BTD, weight, decoder.config.norm_eps, torch.float32)


def head(decoder: Decoder, x_BTD: Tensor) -> Tensor:
    """Logits [B, T, V]."""
    return decoder.head.apply(normed(decoder, x_BTD, decoder.norm))
