"""The first rows of a segment show which columns and diagonals its other rows need; the rest is left out.

Paper      MInference 1.0 (Jiang et al. 2024), the vertical-slash pattern; how much to keep by mass as in FlexPrefill (Lai et al. 2025).
Equation   M[i, p] mass that sampled row i gives to page p; vertical p scores sum_i M[i, p], diagonal o scores sum_i M[i, page(i) - o].
           Per head, verticals by score and diagonals by score / slash_cost are taken in one order, the shortest beginning of it that
           covers `mass` of M in the sampled rows, over what is always met: the first page and the `window` keys before a block.
Shapes     M [H, R, P], R sampled rows; pages bool [H, B, P].
Guarantee  approximate: what is left out holds about 1 - mass of the attention of the sampled rows, other rows may differ.
Cost       a matrix of R rows of scores per segment; then what is kept, in pages of 16 keys by blocks of 64 queries.
Choose     for prompts of several thousand tokens. mass=1 keeps everything and is plain attention, bit for bit.
Differs    a prompt's segments each have their own pattern, from their own first 64 rows, which meet everything (the paper: one pattern,
           from the prompt's last 64 rows), so that no answer depends on how a prompt was cut; columns are pages; no offline search.
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

EACH = QUERY_BLOCK // KEY_BLOCK  # pages of a block of queries


@dataclass(frozen=True, kw_only=True)
class VerticalSlash:
    """Settings in tokens unless it says otherwise."""

    mass: float = 0.98  # share of the sampled rows' attention that is kept, per head
    window: int = 1024  # keys before a block of queries that are always met
    dense_below: int = 2048  # segments that begin below this meet everything
    segment: int = 1024  # rows that share a pattern; a multiple of 64
    every: int = 8  # one of so many of a segment's first 64 rows is sampled; at most 16
    slash_cost: float = 2.0  # pages that a diagonal costs a block of queries, about, where a column costs one
    name: ClassVar[str] = "vertical_slash"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise BadField(f"vertical_slash mass={self.mass}: must be above 0 and at most 1")
        if self.segment < QUERY_BLOCK or self.segment % QUERY_BLOCK or self.window < 0 or self.slash_cost <= 0:
            raise BadField(f"vertical_slash segment={self.segment}: a positive multiple of {QUERY_BLOCK}; window at least 0, slash_cost above 0")
        if not 1 <= self.every <= KEY_BLOCK:
            raise BadField(f"vertical_slash every={self.every}: must be between 1 and {KEY_BLOCK}")

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        if self.mass == 1 or view.stop <= self.dense_below:
            return [everything(view)]
        pages = np.ones((view.num_heads, len(view.blocks), view.num_pages), bool)
        for first in range(view.start // self.segment * self.segment, view.stop, self.segment):
            if first >= self.dense_below and first + QUERY_BLOCK < view.stop:
                start = first // QUERY_BLOCK - view.blocks.start
                stop = min(start + self.segment // QUERY_BLOCK, len(view.blocks))
                pages[:, start + 1 : stop] = self.kept(view, first, np.arange(start + 1, stop) + view.blocks.start)
        return [listed(view, pages)]

    def kept(self, view: View, first: int, blocks: np.ndarray) -> np.ndarray:
        """bool [H, len(blocks), P]: what those blocks of the segment that begins at `first` meet."""
        num = first // KEY_BLOCK + EACH  # pages that the sampled rows see
        rows = torch.arange(self.every - 1, QUERY_BLOCK, self.every)
        mass = self.sampled(view, first, rows)
        offset = (first + rows)[:, None] // KEY_BLOCK - torch.arange(num)  # [R, P]
        vertical, slash = self.ranks(mass, offset)
        covered = torch.minimum(vertical[:, None], slash.gather(1, offset.clamp(min=0).flatten().expand(len(mass), -1)).view_as(mass))
        num_taken = self.num_taken(mass, covered, 2 * num)[:, None]
        is_vertical, is_slash = ((x < num_taken).numpy() for x in (vertical, slash))
        far = np.zeros((len(mass), view.num_pages + EACH), bool)  # diagonals by offset; those behind the longest one seen continue no pattern
        far[:, :num] = is_slash
        reach = np.logical_or.reduce([far[:, k : k + view.num_pages] for k in range(EACH)])  # of a block, from its first page on
        gap = blocks[:, None] * EACH - np.arange(view.num_pages)  # [B, P]
        pages = np.where(gap >= 0, reach[:, np.maximum(gap, 0)], True)
        pages[:, :, :num] |= is_vertical[:, None]
        return pages | (gap * KEY_BLOCK < self.window + KEY_BLOCK)

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        """float32 [H, R, P]: the attention of the segment's sampled rows, summed by page."""
        num_keys = first + QUERY_BLOCK
        q_KGRE = view.q_NHE[first - view.start + rows].unflatten(1, (view.num_kv_heads, -1)).permute(1, 2, 0, 3)
        keys = view.keys(0, num_keys).permute(1, 2, 0)  # [K, E, C]
        scores = (q_KGRE.flatten(1, 2) @ keys).unflatten(1, (view.group, len(rows))).flatten(0, 1).float()
        scores = scores.mul_(q_KGRE.shape[-1] ** -0.5)
        scores[:, :, first:].masked_fill_(torch.arange(QUERY_BLOCK) > rows[:, None], -torch.inf)
        mass = scores.sub_(scores.amax(-1, keepdim=True)).exp_().unflatten(-1, (-1, KEY_BLOCK)).sum(-1)
        return mass / mass.sum(-1, keepdim=True)

    def ranks(self, mass: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [H, P] each: when a vertical page and a diagonal (by its offset in pages) would be taken, 0 for what is always met."""
        num_heads, _, num = mass.shape
        seen = torch.where(offset >= 0, mass, 0.0)
        slash = torch.zeros(num_heads, num).scatter_add_(1, offset.clamp(min=0).flatten().expand(num_heads, -1), seen.flatten(1))
        order = torch.cat([mass.sum(1), slash / self.slash_cost], 1).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(1, 2 * num + 1).expand(num_heads, -1))
        rank[:, 0] = 0
        rank[:, num : num + 1 + self.window // KEY_BLOCK] = 0
        return rank[:, :num], rank[:, num:]

    def num_taken(self, mass: Tensor, covered: Tensor, num_ranks: int) -> Tensor:
        """int64 [H]: ranks below it cover enough of the sampled mass."""
        by_rank = torch.zeros(len(mass), num_ranks + 1).scatter_add_(1, covered.flatten(1), mass.flatten(1))
        return (by_rank.cumsum(1) < self.mass * mass.shape[1]).sum(1) + 1
