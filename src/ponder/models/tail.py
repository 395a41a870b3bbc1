"""A tail (core.tail) packed for a decoder: the projections that its last layers have instead of the model's.

Shapes: T rows, D width, N changed layers, G groups of them, H query heads, K key heads, E head width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import Linear, ModelConfig, WeightFormat
from ponder.core.probe import checkpoint_of
from ponder.core.tail import Tail


@dataclass(frozen=True)
class Rows:
    """A RawTensor (core.formats) over a tensor."""

    weight: Tensor
    name: str
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.weight[start:stop].float().clone()

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.dense(start, stop).numpy().view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class PackedTail:
    """What layers from `start` on compute before their attention. Row i of every result depends on row i of its arguments alone."""

    start: int
    num: int  # changed layers
    share: int
    config: ModelConfig
    dtype: torch.dtype
    norm: Tensor  # float32 [D]
    keys: Linear  # of all groups: k and v of the first, of the second, ...
    keys_bias: Tensor | None
    queries: tuple[Linear, ...]  # of each layer
    queries_bias: tuple[Tensor, ...]  # of each layer, or none
    attn_norms: tuple[Tensor, ...]  # of each layer, the model's own

    @property
    def num_groups(self) -> int:
        return -(-self.num // self.share)

    def group(self, layer: int) -> int:
        """Which layer of keys, counted over the whole model, a changed layer reads."""
        return self.start + (layer - self.start) // self.share

    def keys_of(self, x_TD: Tensor, angles: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """k (rotated), v [T, K, E] of each group, of rows that enter layer `start`."""
        found = self.keys.apply(self._normed(x_TD, self.norm))
        if self.keys_bias is not None:
            found = found + self.keys_bias
        found_TJE = found.view(len(found), 2 * self.num_groups, self.config.num_kv_heads, self.config.head_dim)
        return [(self._rotated(found_TJE[:, 2 * g], angles), found_TJE[:, 2 * g + 1].contiguous()) for g in range(self.num_groups)]

    def queries_of(self, layer: int, x_TD: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """q [T, H, E], rotated, of rows that enter a changed layer."""
        at = layer - self.start
        q = self.queries[at].apply(self._normed(x_TD, self.attn_norms[at]))
        if self.queries_bias:
            q = q + self.queries_bias[at]
        return self._rotated(q.view(len(q), -1, self.config.head_dim), angles)

    def _normed(self, x_TD: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight, self.config.norm_eps).to(self.dtype)

    def _rotated(self, x_TJE: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = angles
        x_TJE = x_TJE.float()
        swapped = x_TJE.unflatten(-1, (2, -1)).flip(2).flatten(2)
        return torch.addcmul(x_TJE * cos, swapped, sin).to(self.dtype)


def packed(tail: Tail, config: ModelConfig, attn_norms: tuple[Tensor | None, ...], *, weights: WeightFormat, dtype: torch.dtype) -> PackedTail:
    """attn_norms: of all layers. Raises BadField for a tail of another model, Unsupported for a model whose attention has more than a tail knows."""
    tail.check(config)
    norms = tuple(norm for norm in attn_norms[tail.start :] if norm is not None)
    alike = not (any(config.windows) or config.rotary_layers or config.rope_local_theta)
    if config.qk_norm != "none" or len(norms) != len(tail.q) or not alike or config.query_scale != 1:
        raise Unsupported(f"a tail of a {config.arch} model: its layers must read one norm, and see and rotate alike; use a Llama or a Qwen2")
    parts = [Rows(part, f"tail.{name}.{g}") for g in range(len(tail.k)) for name, part in (("k", tail.k[g]), ("v", tail.v[g]))]
    keys, queries = weights.pack(tuple(parts)), tuple(weights.pack((Rows(q, f"tail.q.{i}"),)) for i, q in enumerate(tail.q))
    weights.complete([keys, *queries])
    keys_bias = None
    if tail.k_bias is not None and tail.v_bias is not None:
        keys_bias = torch.stack([tail.k_bias, tail.v_bias], 1).flatten().to(dtype)
    return PackedTail(
        start=tail.start, num=len(tail.q), share=tail.share, config=config, dtype=dtype, norm=tail.norm.float(), keys=keys, keys_bias=keys_bias,
        queries=queries, queries_bias=() if tail.q_bias is None else tuple(tail.q_bias.to(dtype)), attn_norms=norms,
    )  # fmt: skip


def check_model(tail: Tail, model_id: str) -> None:
    """Raises BadField for a tail of another model."""
    if tail.model_id != checkpoint_of(model_id):
        raise BadField(f"a tail of model {tail.model_id}: this is {checkpoint_of(model_id)}; train one on this model")
