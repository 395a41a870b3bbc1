"""What a cache policy may see of a sequence, one layer at a time, and how it is computed again from queries and keys.

Attention kernels do not hand out their weights. A policy says what it must see (`Needs`); the engine keeps the queries of those rows
alone, or sums their weights while a prompt is read. The weights are computed again, exactly, in blocks, and nothing that nobody asked
for: from queries, keys and the kernel's log-sum-exp where it is compiled (native/columns.cpp), else by `columns_of`.

Column sums are sums of whole multiples of QUANTUM, which float64 adds without rounding. So they are the same, bit for bit, however
a prompt was cut into chunks.

Shapes: K key heads, H query heads, G = H / K, N slots of a head, E head width, R rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import ITSELF, Twin
from ponder.core.errors import BadField

QUANTUM = 2.0**-24  # of one weight in a column sum
ROWS = 64  # rows whose weights are computed together; aligned by place


class TokenReader(Protocol):
    """What a policy makes of each token while it is computed, one number for each key head. Hashable; equal only for equal readings.

    read: float32 [T, K] of queries [T, H, E], keys and values [T, K, E] before they are rotated. A row depends on its own token alone, bit for bit.
    """

    def read(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a policy must see, beside keys, values and positions, which lie in their pages. The default is nothing."""

    has_columns: bool = False  # how much attention each key received ...
    num_rows: int | None = None  # ... from the last so many tokens; None: from all
    decay: float = 1.0  # of what it received, per row that came later
    num_ahead: int = 0  # ... and from so many tokens of a likely continuation of the prompt, which is then forgotten ...
    draft: Twin = ITSELF  # ... by whom it is written; the default is the model itself
    reader: TokenReader | None = None  # what is made of each token

    def __post_init__(self) -> None:
        if (self.num_rows is not None and self.num_rows < 1) or not 0 < self.decay <= 1:
            raise BadField(f"evidence num_rows={self.num_rows}, decay={self.decay}: num_rows must be at least 1 or None, decay in (0, 1]")

    def first_row(self, stop: int) -> int:
        """The first of the rows before `stop` that must be seen."""
        return self.first_column_row(stop) if self.reader is None else 0

    def first_column_row(self, stop: int) -> int:
        """The first of the rows before `stop` whose attention must be seen."""
        if not self.has_columns:
            return stop
        return 0 if self.num_rows is None else max(0, stop - self.num_rows)


@dataclass(frozen=True, kw_only=True)
class View:
    """One layer of a sequence. A head's keys are its first slots, in the order of their positions; a head may hold fewer than N."""

    layer: int
    num_layers: int
    num_tokens: int  # computed so far: the next position
    positions: Tensor  # int64 [K, N]; -1 behind a head's last
    read: Callable[[], tuple[Tensor, Tensor]]  # keys and values, for who looks at them
    columns: Tensor | None = None  # float64 [K, N], summed over rows and group, where has_columns asks
    readings: Tensor | None = None  # float32 [K, N], of the tokens that the keys came from, where a reader asks

    @property
    def held(self) -> Tensor:
        """bool [K, N]: slots that hold a key."""
        return self.positions >= 0

    @property
    def keys(self) -> Tensor:
        """[K, N, E], rotated; whatever, behind a head's last."""
        return self._pair[0]

    @property
    def values(self) -> Tensor:
        """[K, N, E]"""
        return self._pair[1]

    @cached_property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.read()


def scores_of(
    queries: Tensor, keys: Tensor, positions: Tensor, at: Tensor, *, window: int | None = None, softcap: float | None = None
) -> Tensor:  # fmt: skip
    """float32 [K, G, R, N]: q k / sqrt(E) of queries [R, H, E] at positions `at` [R], with keys [K, N, E]; -inf for what a row does not see."""
    num_heads, num_rows = len(keys), len(queries)
    q_KXE = queries.float().view(num_rows, num_heads, -1, keys.shape[-1]).permute(1, 2, 0, 3).flatten(1, 2)
    scores = torch.bmm(q_KXE, keys.float().transpose(1, 2)).div_(math.sqrt(keys.shape[-1])).view(num_heads, -1, num_rows, keys.shape[1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = (positions[:, None] >= 0) & (positions[:, None] <= at[:, None])  # [K, R, N]
    if window is not None:
        seen &= positions[:, None] > at[:, None] - window
    return scores.masked_fill_(~seen[:, None], -math.inf)


def weights_of(scores: Tensor) -> Tensor:
    """softmax over keys; a row that sees nothing weighs nothing."""
    return scores.softmax(-1).nan_to_num_(0.0)


def columns_of(
    queries: Tensor, keys: Tensor, positions: Tensor, start: int, *, window: int | None = None, softcap: float | None = None,
    factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """float64 [K, N]: attention that queries [R, H, E] of positions start .. start + R give to each key, summed over rows and group.

    In aligned blocks of rows, so that no n x n matrix is ever there. Where the keys are all that there are, a block meets those up to its
    own end, so that its shape, and with it every bit, is a function of its place. factors [R]: weight of each row; None for ones.
    """
    found = torch.zeros(positions.shape, dtype=torch.float64)
    stop, num = start + len(queries), positions.shape[1]
    for first in range(start // ROWS * ROWS, stop, ROWS):
        low, high = max(first, start), min(first + ROWS, stop)
        block = F.pad(queries[low - start : high - start], (0, 0, 0, 0, low - first, first + ROWS - high))  # one shape: equal rows, equal bits
        at = torch.arange(first, first + ROWS)
        more = first + ROWS - num if num == stop else 0
        near, places = F.pad(keys, (0, 0, 0, more)), F.pad(positions, (0, more), value=-1)
        weights = weights_of(scores_of(block, near, places, at, window=window, softcap=softcap))[:, :, low - first : high - first, :num]
        if factors is not None:
            weights = weights * factors[low - start : high - start, None].float()
        found[:, : weights.shape[-1]] += weights.flatten(1, 2).div_(QUANTUM).round_().sum(1, dtype=torch.float64)
    return found.mul_(QUANTUM)
