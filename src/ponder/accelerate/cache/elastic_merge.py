"""A dropped key is averaged into the nearest one that stays.

Paper      Elastic Cache (Liu et al. 2024, arXiv:2407.18121), section 3.2.
Equation   c(i) = kept key nearest in position, the earlier of two; k_c <- mean of k_c and all k_i with c(i) = c, and so values.
Shapes     view, kept slots of each head -> keys and values [num kept, E] of each.
Guarantee  approximate: merged keys stand for several; exact where nothing is dropped.
Cost       one pass over the keys whenever some are dropped.
Choose     texts whose neighbours mean alike, such as patches of a picture; for text D2O's similarity is the better guide.
Differs    from the paper's code, which compares indices where it means ranks: the paper's rule is kept. Keys merge as they lie, rotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.core.evidence import View


@dataclass(frozen=True, kw_only=True)
class ElasticMerge:
    has_rest: ClassVar[bool] = False

    def evict(self, view: View, kept: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [self._of_head(view, head, slots) for head, slots in enumerate(kept)]

    def rest(self, view: View, kept: Sequence[Tensor]) -> None:
        return None

    def _of_head(self, view: View, head: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = view.keys[head], view.values[head]
        held = view.held[head].nonzero()[:, 0]
        if not len(slots) or len(slots) == len(held):
            return keys[slots], values[slots]
        bucket = nearest(view.positions[head, held], view.positions[head, slots])
        size = torch.zeros(len(slots), 1).index_add_(0, bucket, torch.ones(len(held), 1))
        keys, values = (torch.zeros(len(slots), rows.shape[1]).index_add_(0, bucket, rows[held].float()) / size for rows in (keys, values))
        return keys.to(view.keys.dtype), values.to(view.values.dtype)


def nearest(positions: Tensor, anchors: Tensor) -> Tensor:
    """Index of the anchor (ascending) nearest to each position; the earlier of two."""
    after = torch.searchsorted(anchors, positions).clamp(max=len(anchors) - 1)
    before = (after - 1).clamp(min=0)
    return torch.where((positions - anchors[before]).abs() <= (anchors[after] - positions).abs(), before, after)
