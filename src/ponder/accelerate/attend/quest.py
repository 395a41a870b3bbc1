"""Each query meets the pages of keys whose bounds say that they could matter most to it.

Paper      Quest: query-aware sparsity for efficient long-context LLM inference (Tang et al. 2024).
Equation   Page p of key head k has bounds lo, hi [E], the least and the largest of its keys in each dimension. To query q it promises
               u = sum_e max(q_e lo_e, q_e hi_e)  >=  q . key for every key of it.
           A key head meets its query's own page and the keep / 16 - 1 full pages before it with the largest u, of its query heads' the
           largest; of equal ones the earlier.
Shapes     bounds [K, P, 2 E] of full pages, in the keys' own type, which holds them exactly, as a panel; lists per key head and query.
Guarantee  approximate: what is left out may have had attention; never a key whose score is above all bounds of what is met.
Cost       keep keys a query and head, and the bounds: a sixteenth of the keys' and values' bytes in memory and read for each token.
Choose     for answers behind long prompts, also ones that are asked about again: nothing is dropped. keep >= context is plain attention, bit
           for bit.
Differs    pages of 16 keys as in the paper; query heads that share a key head share a list; prompts are read whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, Piece, View, everything, of_answer, of_answer_even
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.native.panels import Panel, appended, best, packed


@dataclass(frozen=True, kw_only=True)
class Quest:
    """Settings in tokens unless it says otherwise."""

    keep: int = 1024  # keys that each key head meets for each query; a multiple of 16
    dense_layers: int = 2  # first layers, which meet everything
    name: ClassVar[str] = "quest"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = False
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.keep < KEY_BLOCK or self.keep % KEY_BLOCK or self.dense_layers < 0:
            raise BadField(f"quest keep={self.keep}: must be a positive multiple of {KEY_BLOCK}; dense_layers at least 0")

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if view.layer < self.dense_layers or view.stop <= self.keep:
            return [everything(view)]
        panels = self.bounds(view)
        lists = [self.pages(view, place, panels) for place in range(view.start, view.stop)]
        if len(lists) == 1:
            return [of_answer_even(view, lists[0], are_pages=True)]
        return [of_answer(view, [some for of_heads in lists for some in of_heads], are_pages=True)]

    def bounds(self, view: View) -> list[Panel]:
        """Of the prompt's full pages, and of those behind them, up to the page of the last query; remembered."""
        cut, end = view.num_prompt // KEY_BLOCK, (view.stop - 1) // KEY_BLOCK
        prompt, own = view.memory.prompt, view.memory.own
        if "bounds" not in prompt:
            prompt["bounds"] = packed(bounds_of(view.keys(0, cut * KEY_BLOCK)))
        num = int(own["num"]) if own else 0
        if cut + num < end:
            fresh = bounds_of(view.keys((cut + num) * KEY_BLOCK, end * KEY_BLOCK))
            own["bounds"], num = appended((own["bounds"], num), fresh) if own else (packed(fresh), fresh.shape[1])
            own["num"] = torch.tensor(num)
        return [(prompt["bounds"], cut), *([(own["bounds"], num)] if own else [])]

    def pages(self, view: View, place: int, panels: Sequence[Panel]) -> np.ndarray:
        """int32 [K, keep / 16 or all]: what each key head meets for the query at `place`, of what lies before its own page, and that."""
        own_page, num = place // KEY_BLOCK, self.keep // KEY_BLOCK - 1
        if own_page <= num:
            return np.broadcast_to(np.arange(own_page + 1, dtype=np.int32), (view.num_kv_heads, own_page + 1))
        q_KGE, seen, before = view.q_NHE[place - view.start].unflatten(0, (view.num_kv_heads, -1)), [], own_page
        for pairs, known in panels:
            seen.append((pairs, min(known, before)))
            before -= seen[-1][1]
        return best(q_KGE, seen, num, are_boxes=True, then=(own_page,))


def bounds_of(keys_CKE: Tensor) -> Tensor:
    """[K, P, 2 E]: the largest, then the least of each dimension, of pages of keys."""
    pages = keys_CKE.unflatten(0, (-1, KEY_BLOCK)) if len(keys_CKE) else keys_CKE.new_zeros(0, 1, *keys_CKE.shape[1:])
    return torch.cat([pages.amax(1), pages.amin(1)], 2).transpose(0, 1).contiguous()
