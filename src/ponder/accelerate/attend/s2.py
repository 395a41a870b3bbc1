"""Every head meets what is near, and its own share of what is far; together the heads meet everything.

Paper      S2-Attention (Lin et al. 2024): sparsely sharded attention.
Equation   query block b (of 64) of head h meets key page p (of 16) of shard s = p // (shard / 16) where p is among the first `sinks` keys,
           or among the `window` keys before the block or in it, or s mod stride = h mod stride.
Shapes     pages bool [H, B, P].
Guarantee  approximate: each head reads other keys than it was trained to, unless the model was trained so.
Cost       window + context / stride keys a query in layers from num_dense on, all keys in those before.
Choose     for models that were trained with it; for others only where the loss was measured. stride=1 is plain attention.
Differs    near and far are told apart by whole pages and blocks of queries; layers that meet all keys are the first ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, Piece, View, everything, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class S2:
    """Settings in tokens, multiples of 16."""

    window: int = 512  # keys before a block of queries that every head meets
    sinks: int = 16  # first keys, which every head meets
    shard: int = 64  # keys that belong to one head's share together
    stride: int = 4  # every stride-th shard is a head's; at most as many as there are query heads
    num_dense: int = 2  # first layers, which meet everything
    name: ClassVar[str] = "s2"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.stride < 1 or self.num_dense < 0 or self.window < 0 or self.sinks < 0:
            raise BadField(f"s2 stride={self.stride}, window={self.window}, sinks={self.sinks}, num_dense={self.num_dense}: give 1, 0, 0, 0 at least")
        if self.shard < KEY_BLOCK or self.shard % KEY_BLOCK:
            raise BadField(f"s2 shard={self.shard}: must be a positive multiple of {KEY_BLOCK}")

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if self.stride > view.num_heads:
            raise BadField(f"s2 stride={self.stride}: with {view.num_heads} query heads some keys would be nobody's; give at most {view.num_heads}")
        if view.layer < self.num_dense:
            return [everything(view)]
        page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None] * QUERY_BLOCK
        near = ((page + 1) * KEY_BLOCK > block - self.window) | (page * KEY_BLOCK < self.sinks)  # [B, P]
        mine = page // (self.shard // KEY_BLOCK) % self.stride == np.arange(view.num_heads)[:, None] % self.stride  # [H, P]
        return [listed(view, near[None] | mine[:, None])]
