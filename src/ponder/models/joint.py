"""Two decoders of the same tokens as one: the layers of the second lie behind the first's, and a blend makes one row of logits of two.

So both read every token in one step, their keys lie in the same pages, and prefixes, forks, drafts and forms know of one model. Heads
of keys that are fewer or narrower than the other's are filled up with zeros; where nothing must be filled up a layer computes, bit for
bit, what it does alone.

Shapes: T flat tokens, D width, H query heads, K key heads, G = H / K, E head width, R rows of logits, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.blend import Blend
from ponder.core.draft import Blur
from ponder.core.errors import Unsupported
from ponder.core.formats import ModelConfig
from ponder.models.decoder import Attend, Decoder


@dataclass(frozen=True, kw_only=True)
class JointDecoder(Decoder):
    """Weights that are no list of layers of one width are of `first`."""

    first: Decoder
    second: Decoder
    blend: Blend

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, prompts: Sequence[tuple[int, int]] = (), *, skips: frozenset[int] = frozenset(),
        mixes: Mapping[int, Blur] | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden rows of both, side by side."""
        num = self.first.config.num_layers
        rows = []
        for decoder, offset in ((self.first, 0), (self.second, num)):
            own = frozenset(i - offset for i in skips if 0 <= i - offset < decoder.config.num_layers)
            meet = widened(attend, offset, decoder.config, self.config)
            rows.append(decoder.forward(tokens, positions, meet, prompts, skips=own, mixes=mixes))
        return torch.cat(rows, -1)

    def flops(self, num_tokens: int, context_len: float) -> float:
        return self.first.flops(num_tokens, context_len) + self.second.flops(num_tokens, context_len)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        width, num = self.first.config.dim, self.config.vocab_size
        first_RV, second_RV = self.first.logits(hidden_RD[:, :width].contiguous()), self.second.logits(hidden_RD[:, width:].contiguous())
        return self.blend.mix(first_RV[:, :num], second_RV[:, :num])


def join(first: Decoder, second: Decoder, blend: Blend) -> JointDecoder:
    """Raises Unsupported for models whose attention or activations are of different kinds."""
    one, two = first.config, second.config
    if first.dtype != second.dtype or one.attn_softcap != two.attn_softcap:
        raise Unsupported(
            f"{first.model_id} with {second.model_id}: two models draw together only with activations of one type and attention of one kind; "
            "take two of one family, in weights of one format"
        )
    parts = {field: getattr(first, field) for field in ("dtype", "embed", "norm", "head", "tables", "table_of")}
    return JointDecoder(
        config=joint_config(one, two), model_id=joint_id(first.model_id, second.model_id, blend),
        layers=(*first.layers, *second.layers), bodies=(*first.bodies, *second.bodies), first=first, second=second, blend=blend, **parts,
    )  # fmt: skip


def joint_id(one: str, two: str, blend: Blend) -> str:
    """Its checkpoint is both, since its states are."""
    (one, _, as_one), (two, _, as_two) = one.partition("/"), two.partition("/")
    return f"{one}+{two}/{as_one}/{as_two}/{blend}"


def joint_config(one: ModelConfig, two: ModelConfig) -> ModelConfig:
    """What holds the keys of both: all their layers, with heads as many and as wide as the larger's."""
    num_kv_heads, group = max(one.num_kv_heads, two.num_kv_heads), max(one.num_heads // one.num_kv_heads, two.num_heads // two.num_kv_heads)
    windows = tuple(config.window(i) for config in (one, two) for i in range(config.num_layers))
    return replace(
        one, num_layers=one.num_layers + two.num_layers, dim=one.dim + two.dim, num_heads=group * num_kv_heads, num_kv_heads=num_kv_heads,
        head_dim=max(one.head_dim, two.head_dim), vocab_size=min(one.vocab_size, two.vocab_size),
        context_len=min(one.context_len, two.context_len), windows=windows if any(windows) else (),
    )  # fmt: skip


def widened(attend: Attend, offset: int, own: ModelConfig, joint: ModelConfig) -> Attend:
    """What a decoder's layers call, over pages whose heads are the joint config's."""
    shape = lambda config: (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    (num_K, num_G, num_E), wide = shape(own), shape(joint)
    if (num_K, num_G, num_E) == wide:
        return lambda layer, q_THE, k_TKE, v_TKE: attend(offset + layer, q_THE, k_TKE, v_TKE)
    scale = math.sqrt(joint.head_dim / own.head_dim)  # scores are divided by the root of the wide head's width

    def meet(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        num = len(q_THE)
        q_TKGE = q_THE.new_zeros(num, *wide)
        q_TKGE[:, :num_K, :num_G, :num_E] = q_THE.reshape(num, num_K, num_G, num_E) * scale
        keys, values = k_TKE.new_zeros(num, wide[0], wide[2]), v_TKE.new_zeros(num, wide[0], wide[2])
        keys[:, :num_K, :num_E], values[:, :num_K, :num_E] = k_TKE, v_TKE
        out_TKGE = attend(offset + layer, q_TKGE.flatten(1, 2), keys, values).view(num, *wide)
        return out_TKGE[:, :num_K, :num_G, :num_E].reshape(num, -1)

    return meet
