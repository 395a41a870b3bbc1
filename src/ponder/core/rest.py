"""What is neither kept in pages nor gone: keys that an evictor has put elsewhere, in fewer bits or in a file, and that queries still meet.

A rest is of one layer of one sequence, never changes, and forks share it. What a query reads from it is a function of the query and of
the rest alone: queries are met one by one, so that no answer depends on how many come at once.

Shapes: N queries, H query heads, K key heads, G = H / K, M keys of a head at most, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.evidence import View, scores_of


@dataclass(frozen=True, kw_only=True)
class Query:
    """Queries [N, H, E] at positions `at` [N], and how their layer reads."""

    q_NHE: Tensor
    at: Tensor
    window: int | None = None
    softcap: float | None = None

    def __len__(self) -> int:
        return len(self.q_NHE)

    def one(self, n: int) -> "Query":
        return Query(q_NHE=self.q_NHE[n : n + 1], at=self.at[n : n + 1], window=self.window, softcap=self.softcap)


class Rest(Protocol):
    @property
    def nbytes(self) -> int:
        """In memory."""
        ...

    @property
    def nbytes_away(self) -> int:
        """Elsewhere."""
        ...

    def meet(self, query: Query) -> tuple[Tensor, Tensor]:
        """What the queries read of it: float32 out [N, H, E] and the log of their summed exponentiated scores [N, H]; -inf where nothing."""
        ...


def met(query: Query, keys_KME: Tensor, values_KME: Tensor, positions_KM: Tensor) -> tuple[Tensor, Tensor]:
    """What queries read of keys whose position is not -1, in float32, one query at a time: (out [N, H, E], lse [N, H])."""
    outs, lses = [], []
    for n in range(len(query)):
        one = query.one(n)
        scores = scores_of(one.q_NHE, keys_KME, positions_KM, one.at, window=query.window, softcap=query.softcap)[:, :, 0]  # [K, G, M]
        outs.append((scores.softmax(-1).nan_to_num_(0.0) @ values_KME.float()).flatten(0, 1))
        lses.append(scores.logsumexp(-1).flatten())
    return torch.stack(outs), torch.stack(lses)


def evicted(view: View, kept: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Keys and values [K, M, E] and positions [K, M] of what is not kept, M a multiple; None when all is.

    A head that lost fewer is filled up with its last key over and over, at position -1.
    """
    is_gone = view.held.clone()
    for head, slots in enumerate(kept):
        is_gone[head, slots] = False
    num_K = is_gone.sum(1)
    most = -(-int(num_K.max()) // multiple) * multiple
    if not most:
        return None
    order = (~is_gone).to(torch.int8).sort(dim=1, stable=True).indices  # those that are gone first, in the order of their positions
    at = torch.arange(most)
    slots = order.gather(1, torch.minimum(at, (num_K - 1).clamp(min=0)[:, None]))
    positions = view.positions.gather(1, slots).masked_fill(at >= num_K[:, None], -1)
    rows = slots[..., None].expand(-1, -1, view.keys.shape[-1])
    return view.keys.gather(1, rows), view.values.gather(1, rows), positions
