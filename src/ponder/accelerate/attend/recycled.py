"""Every so many tokens one meets all keys; until the next one does, the others meet those that it attended to most.

Paper      Recycled Attention (Xu et al. 2024), RefreshKV in its second version.
Equation   Token t of an answer, counted from 0, meets everything where t mod every = 0. Then a_j = sum over the query heads of a key head
           of softmax(q . k)_j, and its `keep` keys with the largest a_j (of equal ones the earlier) are what the every - 1 tokens behind
           it meet, with the keys since: those of the tokens behind it up to their own.
Shapes     places int32 [K, keep], kept until the next such token.
Guarantee  approximate: what the full token did not attend to is not seen until the next.
Cost       a full attention and one more reading of all keys every so many tokens; keep + every keys for the others.
Choose     for long answers whose attention moves slowly. every=1 or keep >= context is plain attention, bit for bit.
Differs    full steps are at fixed places of the answer, not where a query has turned away from the last full one's (a rule that a fork
           of an answer could not take up); all keys stay, and nothing is copied into a cache of its own.
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
from ponder.native.panels import largest


@dataclass(frozen=True, kw_only=True)
class Recycled:
    """Settings in tokens."""

    keep: int = 1024  # keys that each key head meets again
    every: int = 8  # tokens from one that meets everything to the next
    name: ClassVar[str] = "recycled"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = False
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.keep < 1 or self.every < 1:
            raise BadField(f"recycled keep={self.keep}, every={self.every}: both must be at least 1")

    @property
    def answer_segment(self) -> int:
        return self.every

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if self.every == 1 or view.stop <= self.keep:
            return [everything(view)]
        own, whole, some = view.memory.own, [], []
        for place in range(view.start, view.stop):
            since = (place - view.num_prompt) % self.every
            if since == 0 and place >= self.keep:
                own["kept"] = self.most_met(view, place)
            is_whole = since == 0 or place - since < self.keep
            whole.append(np.arange(is_whole and place // KEY_BLOCK + 1, dtype=np.int32)[None].repeat(view.num_kv_heads, 0))
            some.append(whole[-1][:, :0] if is_whole else self.met_again(own["kept"], place, since))
        if len(some) == 1:
            return [of_answer_even(view, whole[0] if some[0].size == 0 else some[0], are_pages=some[0].size == 0)]
        return [of_answer(view, [x for of_heads in lists for x in of_heads], are_pages=lists is whole) for lists in (whole, some)]

    def met_again(self, kept_KN: Tensor, place: int, since: int) -> np.ndarray:
        """int32 [K, keep + since]: what the token at `place`, `since` tokens behind a full one, meets."""
        fresh = np.arange(place - since + 1, place + 1, dtype=np.int32)
        return np.concatenate([kept_KN.numpy(), np.broadcast_to(fresh, (len(kept_KN), since))], 1)

    def most_met(self, view: View, place: int) -> Tensor:
        """int32 [K, keep], ascending: places of the keys that the query at `place` attends to most."""
        assert view.weights is not None
        return torch.from_numpy(largest(view.weights(place), self.keep))
