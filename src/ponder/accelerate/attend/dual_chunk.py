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
from torch import Tensor

from ponder.accelerate.attend.chunks import Chunks, in_chunks
from ponder.core.attention_plan import Piece, View, everything
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
        _ = self.chunks

    @property
    def chunks(self) -> Chunks:
        return Chunks(self.name, self.chunk, self.local, self.times)

    def reach(self, context_len: int) -> int:
        return self.chunks.reach(context_len)

    def pieces(self, view: View) -> Sequence[Piece]:
        if not view.is_rotary:
            return [everything(view)]
        return in_chunks(view, np.ones((1, len(view.blocks), view.num_pages), bool), self.chunk, self.turn)

    def turn(self, places: Tensor, m: int) -> Tensor:
        """How far each query is turned before it meets the keys of chunk m, which is not behind its own."""
        return self.chunks.turn(places, m)
