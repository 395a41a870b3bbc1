"""Keys in chunks, met from distances that a model was trained for: what the plans with dual chunks share.

Key j of chunk m = j // chunk stands at j - m chunk. Query i of chunk a = i // chunk, with r = i - a chunk, meets chunk m = a standing at r, the
one before at min(r + chunk, chunk + local), all others at chunk + local.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, Piece, View, listed
from ponder.core.errors import BadField


@dataclass(frozen=True)
class Chunks:
    """Lengths in tokens: the longest distance that a query meets is chunk + local. Raises BadField."""

    name: str
    chunk: int
    local: int
    times: int  # how many times the model's context a sequence may be long

    def __post_init__(self) -> None:
        if self.chunk < QUERY_BLOCK or self.chunk % QUERY_BLOCK:
            raise BadField(f"{self.name} chunk={self.chunk}: must be a positive multiple of {QUERY_BLOCK}")
        if not 0 <= self.local <= self.chunk or self.times < 1:
            raise BadField(f"{self.name} local={self.local}, times={self.times}: local must be between 0 and chunk, times at least 1")

    def reach(self, context_len: int) -> int:
        """Raises BadField."""
        if self.chunk + self.local >= context_len:
            raise BadField(
                f"{self.name} chunk={self.chunk}, local={self.local}: their sum must be less than the model's context of {context_len}"
            )  # fmt: skip
        return self.times * context_len

    def turn(self, places: Tensor, m: int) -> Tensor:
        """How far each query is turned before it meets the keys of chunk m, which is not behind its own."""
        a, r = places // self.chunk, places % self.chunk
        inter = self.chunk + self.local + m * self.chunk - places
        return torch.where(a == m, 0, torch.where(a == m + 1, torch.clamp(self.local - r, max=0), inter))


def in_chunks(view: View, pages_JBP: np.ndarray, chunk: int, turn: Callable[[Tensor, int], Tensor]) -> Sequence[Piece]:
    """A piece for each chunk of keys, of the pages that each block of queries meets."""
    page, block = np.arange(view.num_pages), np.array(view.blocks)[:, None]
    of_page, of_block = page * KEY_BLOCK // chunk, block * QUERY_BLOCK // chunk
    places = torch.arange(view.start, view.stop)
    found = []
    for m in range((view.stop - 1) // chunk + 1):
        forward = turn(places, m)
        found.append(listed(view, pages_JBP & ((of_page == m) & (of_block >= m)), forward if forward.any() else None))
    return found
