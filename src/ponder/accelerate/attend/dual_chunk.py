"""Far keys are met from nearer positions, so that no distance is longer than the model was trained for.

Paper      Training-free long-context scaling (An et al. 2024), as in the Qwen2.5-1M report (Yang et al. 2025).
Equation   key j of chunk m = j // chunk stands at j - m chunk. Query i of chunk a = i // chunk, with r = i - a chunk, meets chunk
               m = a      standing at r                              (intra)
               m = a - 1  standing at min(r + chunk, chunk + local)  (successive)
               m < a - 1  standing at chunk + local                  (inter)
           Keys are stored rotated to j and stay there: the query is turned by its place in the chunk, plus m chunk, less i.
Shapes     one piece per chunk of keys, each with a turn int64 [N].
Guarantee  approximate: beyond one chunk distances are not the true ones; sequences of at most `chunk` tokens are exact, bit for bit.
Cost       plain attention, and one rotation of the queries per chunk of keys.
Choose     for prompts up to `times` as long as the model's context. chunk + local must be less than that context: 3/4 of it is usual.
Differs    chunks are multiples of 64 tokens; all distances below `local` are true ones, as in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, Piece, View, everything, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class DualChunk:
    """The longest distance that a query meets is chunk + local."""

    chunk: int = 5632  # tokens; a multiple of 64
    local: int = 512  # distances up to this are the true ones across a chunk's border
    times: int = 4  # how many times the model's context a sequence may be long
    name: ClassVar[str] = "dual_chunk"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    segment: ClassVar[int] = 1
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chunk < QUERY_BLOCK or self.chunk % QUERY_BLOCK:
            raise BadField(f"dual_chunk chunk={self.chunk}: must be a positive multiple of {QUERY_BLOCK}")
        if not 0 <= self.local <= self.chunk or self.times < 1:
            raise BadField(f"dual_chunk local={self.local}, times={self.times}: local must be between 0 and chunk, times at least 1")

    def reach(self, context_len: int) -> int:
        if self.chunk + self.local >= context_len:
            raise BadField(f"dual_chunk chunk={self.chunk}, local={self.local}: their sum must be less than the model's context of {context_len}")
        return self.times * context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if not view.is_rotary:
            return [everything(view)]
        page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None]
        of_page, of_block = page * KEY_BLOCK // self.chunk, block * QUERY_BLOCK // self.chunk
        places = torch.arange(view.start, view.stop)
        found = []
        for m in range((view.stop - 1) // self.chunk + 1):
            turn = self.turn(places, m)
            found.append(listed(view, ((of_page == m) & (of_block >= m))[None], turn if turn.any() else None))
        return found

    def turn(self, places: Tensor, m: int) -> Tensor:
        """How far each query is turned before it meets the keys of chunk m, which is not behind its own."""
        a, r = places // self.chunk, places % self.chunk
        inter = self.chunk + self.local + m * self.chunk - places
        return torch.where(a == m, 0, torch.where(a == m + 1, torch.clamp(self.local - r, max=0), inter))
