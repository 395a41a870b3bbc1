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
           from the prompt's last 64 rows), so that no answer depends on how a prompt was cut; columns are pages; no offline search. With
           `check` a segment looks again as it goes (Qwen2.5-1M's refinement, which is offline).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ponder.accelerate.attend.slashes import check_pattern, kept_pages, mass_of, scores_of
from ponder.core.attention_plan import QUERY_BLOCK, Piece, View, everything, listed
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class VerticalSlash:
    """Settings in tokens unless it says otherwise."""

    mass: float = 0.98  # share of the sampled rows' attention that is kept, per head
    window: int = 1024  # keys before a block of queries that are always met
    dense_below: int = 2048  # segments that begin below this meet everything
    segment: int = 1024  # rows that share a pattern; a multiple of 64
    every: int = 8  # one of so many of a segment's first 64 rows is sampled; at most 16
    slash_cost: float = 2.0  # pages that a diagonal costs a block of queries, about, where a column costs one
    check: int = 0  # rows from one look to the next in a segment; 0: one look at its beginning
    name: ClassVar[str] = "vertical_slash"
    guarantee: ClassVar[Guarantee] = Guarantee.APPROXIMATE
    answer_segment: ClassVar[int] = 1
    is_for_prompts: ClassVar[bool] = True
    is_for_answers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_pattern(self)

    def reach(self, context_len: int) -> int:
        return context_len

    def pieces(self, view: View) -> Sequence[Piece]:
        pages = kept_pages(view, self, self.sampled)
        return [everything(view) if pages is None else listed(view, pages)]

    def sampled(self, view: View, first: int, rows: Tensor) -> Tensor:
        """float32 [H, R, P]: the attention of sampled rows of the block at `first`, summed by page."""
        return mass_of(scores_of(view, view.q_NHE[first - view.start + rows], 0, first + QUERY_BLOCK), first, rows)
