"""A dropped key that is like one that stays is merged into it.

Paper      D2O (Wan et al. 2024, arXiv:2406.13035), section 3.3.
Equation   c(i) = kept key of largest cosine u_i; where u_i >= mean u: k_c <- (e k_c + sum_i exp(u_i) k_i) / (e + sum_i exp(u_i)), and so values.
Shapes     view, kept slots of each head -> keys and values [num kept, E] of each.
Guarantee  approximate: merged keys stand for several; exact where nothing is dropped.
Cost       dropped x kept products per head, in blocks, whenever keys are dropped.
Choose     small budgets, where what was dropped still matters a little.
Differs    the threshold is the mean of this eviction; the paper averages it over past ones. Keys merge as they lie, rotated, as in its code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.evidence import View

BLOCK = 1024  # dropped keys that meet the kept ones together


@dataclass(frozen=True, kw_only=True)
class D2OMerge:
    has_rest: ClassVar[bool] = False

    def evict(self, view: View, kept: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [self._of_head(view, head, slots) for head, slots in enumerate(kept)]

    def rest(self, view: View, kept: Sequence[Tensor]) -> None:
        return None

    def _of_head(self, view: View, head: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        is_gone = view.held[head].clone()
        is_gone[slots] = False
        keys, values = view.keys[head], view.values[head]
        if not len(slots) or not bool(is_gone.any()):
            return keys[slots], values[slots]
        gone = is_gone.nonzero()[:, 0]
        anchors = F.normalize(keys[slots].float(), dim=-1)
        nearest = [(F.normalize(keys[part].float(), dim=-1) @ anchors.T).max(1) for part in gone.split(BLOCK)]
        likeness, target = (torch.cat([getattr(n, name) for n in nearest]) for name in ("values", "indices"))
        joins = likeness >= likeness.mean()
        weight, target, gone = likeness[joins].exp(), target[joins], gone[joins]
        total = torch.full((len(slots), 1), math.e).index_add_(0, target, weight[:, None])
        merged = []
        for rows in (keys, values):
            summed = (rows[slots].float() * math.e).index_add_(0, target, rows[gone].float() * weight[:, None])
            merged.append(torch.where(total > math.e, summed / total, rows[slots].float()).to(rows.dtype))
        return merged[0], merged[1]
