"""What a cache policy may see of a sequence, one layer at a time, and how it is computed again from queries and keys.

Attention kernels do not hand out their weights. A policy says what it must see (`Needs`); the engine keeps the queries of those rows
alone, or sums columns while a prompt is read, and `rows_of` and `columns_of` compute the weights again: exactly, in blocks, and
nothing that nobody asked for.

Column sums are sums of whole multiples of QUANTUM, which float64 adds without rounding. So they are the same, bit for bit, however
a prompt was cut into chunks.

Shapes: K key heads, H query heads, G = H / K, N slots of a head, E head width, R rows.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField

QUANTUM = 2.0**-24  # of one weight in a column sum
ROWS = 64  # rows whose weights are computed together; aligned by place


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a policy must see, beside keys, values and positions, which lie in their pages. The default is nothing."""

    num_rows: int = 0  # attention rows of the last so many tokens
    has_columns: bool = False  # how much attention each key has received
    decay: float = 1.0  # of a column sum, per row that came later

    def __post_init__(self) -> None:
        if self.num_rows and self.has_columns:
            raise BadField(f"a policy that needs {self.num_rows} rows and columns: choose one, rows are summed into columns and then gone")

    @property
    def is_nothing(self) -> bool:
        return not self.num_rows and not self.has_columns


@dataclass(frozen=True, kw_only=True)
class View:
    """One layer of a sequence. A head's keys are its first slots, in the order of their positions; a head may hold fewer than N."""

    layer: int
    num_layers: int
    num_tokens: int  # computed so far: the next position
    keys: Tensor  # [K, N, E], rotated; whatever, behind a head's last
    values: Tensor  # [K, N, E]
    positions: Tensor  # int64 [K, N]; -1 behind a head's last
    queries: Tensor | None = None  # [R, H, E] of the last rows, where num_rows asks for them; fewer when there are not so many
    columns: Tensor | None = None  # float64 [K, N], summed over rows and the group, where has_columns asks
    window: int | None = None  # a row at p sees positions above p - window
    softcap: float | None = None

    @property
    def held(self) -> Tensor:
        """bool [K, N]: slots that hold a key."""
        return self.positions >= 0

    def rows(self) -> Tensor:
        """float32 [H, R, N]: attention weights of the last rows; zero for what a row does not see."""
        assert self.queries is not None, "the policy did not ask for rows"
        at = torch.arange(self.num_tokens - len(self.queries), self.num_tokens)
        return weights_of(scores_of(self.queries, self.keys, self.positions, at, window=self.window, softcap=self.softcap)).flatten(0, 1)


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
