"""The middle third of the layers meets everything; the others meet the first keys and the last ones.

Paper      LongGen (Ge et al. 2024): long contexts with partial contexts.
Equation   layers [L / 3, L - L / 3) meet all keys; in the others query block b (of 64) meets the first `sinks` keys and the `window` keys
           before it or in it, in whole pages of 16.
Shapes     pages bool [1, B, P], the same for every head.
Guarantee  approximate: the outer layers read less than they were trained to, unless the model was trained so.
Cost       a third of plain attention and sinks + window keys a query in the other layers; what those could forget they still hold.
Choose     for models that were trained with it. Without training it loses what lies behind the window: measure first.
           window >= context is plain attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, Piece, View, everything, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class LongGen:
    """Settings in tokens, met in whole pages of 16."""

    window: int = 1024  # keys before a block of queries
    sinks: int = 64  # first keys
    name: ClassVar[str] = "longgen"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window < 0 or self.sinks < 0:
            raise BadField(f"longgen window={self.window}, sinks={self.sinks}: neither can be negative")

    def reach(self, context_len: int) -> int:
        return context_len

    def is_whole(self, layer: int, num_layers: int) -> bool:
        """Whether a layer meets everything: one of the middle third."""
        return num_layers // 3 <= layer < num_layers - num_layers // 3

    def pieces(self, view: View) -> Sequence[Piece]:
        if self.is_whole(view.layer, view.num_layers):
            return [everything(view)]
        page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None] * QUERY_BLOCK
        return [listed(view, (((page + 1) * KEY_BLOCK > block - self.window) | (page * KEY_BLOCK < self.sinks))[None])]
