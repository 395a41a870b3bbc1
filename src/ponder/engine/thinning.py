"""What is known of a sequence whose prompt tokens leave behind some layers (core.pruning.LayerPlan), and the pages it lives in.

Layers between two cuts are a stretch, and all of its layers and heads know the same tokens: of stretch s those of `known[s]`, in the
order in which they came. A token that left behind stretch s resting in `resting[s]` as it was there, and enters the next layers from
there when it is wanted again; so no token goes through a layer twice.

Shapes: L layers, K key heads, N tokens of a prompt, D model width.
"""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ponder.engine.keep import Record
from ponder.engine.pages import PAGE, Pool
from ponder.engine.pages import Sequence as Pages


@dataclass(eq=False)
class Thinned(Record):
    """`last` is the number of tokens that it is about: it cannot be cut."""

    known: list[set[int]] = field(default_factory=list)  # of each stretch but the first, which knows all
    resting: list[dict[int, Tensor]] = field(default_factory=list)  # of each stretch but the last: place in the prompt -> float32 [D]

    @property
    def nbytes(self) -> int:
        """Bytes of what rests."""
        return sum(len(rows) * next(iter(rows.values())).nbytes for rows in self.resting if rows)

    def copy(self, num_tokens: int) -> "Thinned":
        return Thinned(
            self.num_prompt, self.due, num_tokens, known=[set(x) for x in self.known], resting=[dict(x) for x in self.resting],
        )  # fmt: skip


class LoosePages(Pages):
    """Pages with room for every token in every layer, so that one that left may come back at any time."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)

    def reserve(self, num_tokens: int) -> bool:
        if not super().reserve(num_tokens):
            return False
        dropped, self.dropped = self.dropped, np.zeros_like(self.dropped)
        try:
            return super().reserve(num_tokens)
        finally:
            self.dropped = dropped

    def fork(self) -> "LoosePages":
        """With the pages that hold something, and no others: what is written next is written to pages of its own."""
        other = LoosePages(self.pool)
        held = -(-(self.num_tokens - self.dropped) // PAGE)
        other.table, other.dropped = self.table.copy(), self.dropped.copy()
        other.num_pages = np.minimum(self.num_pages, held).astype(np.int32)
        other.num_tokens, other.is_ragged = self.num_tokens, self.is_ragged
        self.pool.share(other.table[other._is_held()])
        return other

    def shift(self, layers: range, dropped: int) -> None:
        """The next token of these layers goes `dropped` slots before its place."""
        if (self.dropped[layers.start, 0]) == dropped:
            return
        self.dropped[layers.start : layers.stop] = dropped
        self.is_ragged = bool(self.dropped.any())
        self.renew()
