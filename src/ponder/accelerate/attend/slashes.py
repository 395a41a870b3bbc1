"""Which columns and diagonals of pages some sampled rows need: what plans share that leave out the rest of a prompt's attention.

Of a segment the first block of queries meets everything, and rows of it are sampled. Per head, columns by the mass that they got and diagonals by
the same / slash_cost are taken in one order, the shortest beginning of it that covers `mass` of what the rows gave. With `check` rows are
sampled again every so many queries (refinement): what follows is ordered by all rows so far, and takes enough for each sampled block.
No row meets keys by a row behind it.

Shapes: H query heads, R sampled rows, P pages, B blocks of queries, C sampled blocks.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, QUERY_BLOCK, View
from ponder.core.errors import BadField

EACH = QUERY_BLOCK // KEY_BLOCK  # pages of a block of queries


class Pattern(Protocol):
    """Settings in tokens unless it says otherwise."""

    @property
    def name(self) -> str: ...

    @property
    def mass(self) -> float:
        """Share of the sampled rows' attention that is kept, per head."""
        ...

    @property
    def window(self) -> int:
        """Keys before a block of queries that are always met."""
        ...

    @property
    def dense_below(self) -> int:
        """Segments that begin below this meet everything."""
        ...

    @property
    def segment(self) -> int:
        """Rows that share a pattern; a multiple of 64."""
        ...

    @property
    def every(self) -> int:
        """One of so many of a block's 64 rows is sampled."""
        ...

    @property
    def slash_cost(self) -> float:
        """Pages that a diagonal costs a block of queries, about, where a column costs one."""
        ...

    @property
    def check(self) -> int:
        """Queries from one sampled block of a segment to the next; 0: the first alone."""
        ...


def check_pattern(pattern: Pattern) -> None:
    """Raises BadField."""
    name, segment = pattern.name, pattern.segment
    if not 0 < pattern.mass <= 1:
        raise BadField(f"{name} mass={pattern.mass}: must be above 0 and at most 1")
    if segment < QUERY_BLOCK or segment % QUERY_BLOCK or pattern.window < 0 or pattern.slash_cost <= 0:
        raise BadField(f"{name} segment={segment}: a positive multiple of {QUERY_BLOCK}; window at least 0, slash_cost above 0")
    if not 1 <= pattern.every <= KEY_BLOCK:
        raise BadField(f"{name} every={pattern.every}: must be between 1 and {KEY_BLOCK}")
    if pattern.check < 0 or pattern.check % QUERY_BLOCK:
        raise BadField(f"{name} check={pattern.check}: must be a multiple of {QUERY_BLOCK}, or 0 for no second look")


def kept_pages(view: View, pattern: Pattern, sampled: Callable[[View, int, Tensor], Tensor]) -> np.ndarray | None:
    """bool [H, B, P]: what each block of queries meets; None: everything. sampled(view, first, rows): as `mass_of` gives it."""
    if pattern.mass == 1 or view.stop <= pattern.dense_below:
        return None
    pages = np.ones((view.num_heads, len(view.blocks), view.num_pages), bool)
    rows = torch.arange(pattern.every - 1, QUERY_BLOCK, pattern.every)
    for segment in range(view.start // pattern.segment * pattern.segment, view.stop, pattern.segment):
        if segment < pattern.dense_below:
            continue
        stop = min(segment + pattern.segment, view.stop)
        looks = range(segment, stop - QUERY_BLOCK, pattern.check or pattern.segment)
        seen: list[Tensor] = []
        for at, first in enumerate(looks):
            seen.append(sampled(view, first, rows))
            last = looks[at + 1] + QUERY_BLOCK if at + 1 < len(looks) else stop
            blocks = np.arange(first // QUERY_BLOCK + 1, -(-last // QUERY_BLOCK))
            places = torch.cat([rows + look for look in looks[: at + 1]])
            pages[:, blocks - view.blocks.start] = chosen(view, pattern, seen, places, blocks=blocks)
    return pages


def chosen(view: View, pattern: Pattern, seen: list[Tensor], places: Tensor, *, blocks: np.ndarray) -> np.ndarray:
    """bool [H, len(blocks), P]: what those blocks meet by sampled rows at `places`, C times as many, of which seen [H, R, P of each]."""
    num = seen[-1].shape[-1]
    mass = torch.cat([F.pad(one, (0, num - one.shape[-1])) for one in seen], 1)
    offset = places[:, None] // KEY_BLOCK - torch.arange(num)  # [C R, P]
    vertical, slash = ranks(pattern, mass, offset)
    covered = torch.minimum(vertical[:, None], slash.gather(1, offset.clamp(min=0).flatten().expand(len(mass), -1)).view_as(mass))
    by_rank = torch.zeros(len(mass), len(seen), 2 * num + 1)
    by_rank.scatter_add_(2, covered.unflatten(1, (len(seen), -1)).flatten(2), mass.unflatten(1, (len(seen), -1)).flatten(2))
    wanted = pattern.mass * mass.shape[1] / len(seen)
    num_taken = (by_rank.cumsum(2) < wanted).sum(2).amax(1)[:, None] + 1
    is_vertical, is_slash = ((x < num_taken).numpy() for x in (vertical, slash))
    far = np.zeros((len(mass), view.num_pages + EACH), bool)  # diagonals by offset; those behind the longest one seen continue no pattern
    far[:, :num] = is_slash
    reach = np.logical_or.reduce([far[:, k : k + view.num_pages] for k in range(EACH)])  # of a block, from its first page on
    gap = blocks[:, None] * EACH - np.arange(view.num_pages)  # [B, P]
    pages = np.where(gap >= 0, reach[:, np.maximum(gap, 0)], True)
    pages[:, :, :num] |= is_vertical[:, None]
    return pages | (gap * KEY_BLOCK < pattern.window + KEY_BLOCK)


def ranks(pattern: Pattern, mass: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [H, P] each: when a vertical page and a diagonal (by its offset in pages) would be taken, 0 for what is always met."""
    num_heads, _, num = mass.shape
    seen = torch.where(offset >= 0, mass, 0.0)
    slash = torch.zeros(num_heads, num).scatter_add_(1, offset.clamp(min=0).flatten().expand(num_heads, -1), seen.flatten(1))
    order = torch.cat([mass.sum(1), slash / pattern.slash_cost], 1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(1, 2 * num + 1).expand(num_heads, -1))
    rank[:, 0] = 0
    rank[:, num : num + 1 + pattern.window // KEY_BLOCK] = 0
    return rank[:, :num], rank[:, num:]


def scores_of(view: View, q_RHE: Tensor, first: int, last: int) -> Tensor:
    """float32 [H, R, last - first]: queries with the keys of those places."""
    q_KGRE = q_RHE.unflatten(1, (view.num_kv_heads, -1)).permute(1, 2, 0, 3)
    keys_KEC = view.keys(first, last).permute(1, 2, 0)
    scores = (q_KGRE.flatten(1, 2) @ keys_KEC).unflatten(1, (view.group, len(q_RHE))).flatten(0, 1).float()
    return scores.mul_(q_RHE.shape[-1] ** -0.5)


def mass_of(scores: Tensor, first: int, rows: Tensor) -> Tensor:
    """float32 [H, R, P]: attention by page, of scores [H, R, first + QUERY_BLOCK]; row r stands at first + rows[r]."""
    scores[:, :, first:].masked_fill_(torch.arange(QUERY_BLOCK) > rows[:, None], -torch.inf)
    mass = scores.sub_(scores.amax(-1, keepdim=True)).exp_().unflatten(-1, (-1, KEY_BLOCK)).sum(-1)
    return mass / mass.sum(-1, keepdim=True)
