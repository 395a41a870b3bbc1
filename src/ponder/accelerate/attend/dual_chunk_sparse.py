"""Dual chunks whose prompts meet only the columns and diagonals that hold enough of what sampled rows attend to, from those very distances.

Paper      Yang et al. 2025, "Qwen2.5-1M Technical Report", section 5: dual chunk attention (An et al. 2024), vertical-slash prefill (MInference)
           found by positions of the chunked view, and sparsity refinement by the recalled share of attention.
Equation   distances are those of dual_chunk. M[i, p] of a sampled row i is softmax of the scores at these distances, summed by page p; pages of
           each block are those of vertical_slash by M. With `check` a block meets enough that every look at its segment so far, each
           `check` rows, would have recalled exp(lse of what is met - lse of all) >= mass in the mean of its rows, per head.
Shapes     M [H, R, P]; pages bool [H, B, P]; one piece per chunk of keys, each with a turn int64 [N].
Guarantee  approximate: as dual_chunk, which it is bit for bit with mass=1; up to `chunk` tokens it is vertical_slash, bit for bit.
Cost       a matrix of R rows of scores at every look; of the rest what is kept. Answers meet all keys.
Choose     for prompts beyond the model's context of which most attention lies in few places; dual_chunk where they are short enough.
Differs    The report refines each head's budgets offline, on long texts; here while a prompt is read, by rows before, so that nothing is
           calibrated. It finds the pattern at distances that it does not clamp (`is_continuous`), so that diagonals stay diagonals; no temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.accelerate.attend.chunks import Chunks, in_chunks
from ponder.accelerate.attend.slashes import check_pattern, kept_pages, mass_of, scores_of
from ponder.core.attention_plan import QUERY_BLOCK, Piece, View, everything, listed
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class DualChunkSparse:
    """Settings in tokens unless it says otherwise. The longest distance that a query meets is chunk + local."""

    chunk: int = 5120  # a multiple of segment
    local: int = 512  # distances up to this are the true ones across a chunk's border
    times: int = 4  # how many times the model's context a sequence may be long
    mass: float = 0.98  # share of the sampled rows' attention that is kept, per head
    window: int = 1024  # keys before a block of queries that are always met
    dense_below: int = 2048  # segments that begin below this meet everything
    segment: int = 1024  # rows that share a pattern; a multiple of 64
    every: int = 8  # one of so many of a block's 64 rows is sampled; at most 16
    slash_cost: float = 2.0  # pages that a diagonal costs a block of queries, about, where a column costs one
    check: int = 256  # rows from one look to the next in a segment; 0: one look at its beginning
    is_continuous: bool = False  # whether the pattern is found at distances that grow on where those that are met are clamped
    name: ClassVar[str] = "dual_chunk_sparse"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.chunks
        check_pattern(self)
        if self.chunk % self.segment:
            raise BadField(f"{self.name} chunk={self.chunk}, segment={self.segment}: chunk must be a multiple of segment")

    @property
    def chunks(self) -> Chunks:
        return Chunks(self.name, self.chunk, self.local, self.times)

    def reach(self, context_len: int) -> int:
        return self.chunks.reach(context_len)

    def pieces(self, view: View) -> Sequence[Piece]:
        pages = kept_pages(view, self, self.sampled) if view.start < view.num_prompt else None
        if not view.is_rotary:
            return [everything(view) if pages is None else listed(view, pages)]
        whole = np.ones((1, len(view.blocks), view.num_pages), bool)
        return in_chunks(view, whole if pages is None else pages, self.chunk, self.chunks.turn)

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        """float32 [H, R, P]: the attention of sampled rows of the block at `first`, summed by page, at the distances of the chunks."""
        places, parts = first + rows, []
        for m in range(first // self.chunk + 1):
            turn = self.found_at(places, m) if view.is_rotary else torch.zeros_like(places)
            q_RHE = view.turned(places - view.start, turn) if turn.any() else view.q_NHE[places - view.start]
            parts.append(scores_of(view, q_RHE, m * self.chunk, min((m + 1) * self.chunk, first + QUERY_BLOCK)))
        return mass_of(torch.cat(parts, -1), first, rows)

    def found_at(self, places: Tensor, m: int) -> Tensor:
        """How far each sampled query is turned before it is shown the keys of chunk m."""
        if not self.is_continuous:
            return self.chunks.turn(places, m)
        a, r = places // self.chunk, places % self.chunk
        return torch.where(a <= m + 1, 0, r + self.chunk + self.local + m * self.chunk - places)
