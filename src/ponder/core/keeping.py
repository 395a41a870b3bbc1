"""Which keys a sequence goes on with: the roles of the cache policies (accelerate/cache).

A policy is four small parts and a budget. When its trigger fires, the scorer says which keys matter, the allocator how many each head
keeps, and the evictor what becomes of the others. All four are pure: what they say is a function of the tokens before alone, so an
answer stays the same alone and in a crowd, in any chunks, forked or preempted.

A prompt is read whole; its last token's logits are those of the full prompt; then the trigger fires for the first time. A policy with a
`chunk` also drops keys at every so many tokens of the prompt, so that a prompt's later tokens read the kept keys alone.

Shapes: L layers, K key heads, N slots of a head, E head width.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.guarantee import Guarantee
from ponder.core.rest import Rest


class Scorer(Protocol):
    """Which keys matter. `score` returns [K, N]: larger is kept first, +inf is kept before all others; slots behind a head's last
    do not count. Reads what `needs` asks for and nothing else. The unit element: any, under a budget that holds everything."""

    @property
    def needs(self) -> Needs: ...

    def score(self, view: View, budget: int) -> Tensor: ...


class Allocator(Protocol):
    """How many keys each head of each layer keeps: int64 [L, K].

    scores [L, K, N], -inf behind a head's last; num int64 [L, K], keys that it holds; budget: keys of a head on average. No head gets more
    than it holds, and all together get budget * L * K, or all that there are when these are fewer.
    """

    def allot(self, scores: Tensor, num: Tensor, budget: int) -> Tensor: ...


class Evictor(Protocol):
    """What becomes of keys that are not kept.

    kept: for each head the slots that stay, ascending. Returns None when the others are just dropped, or for each head new keys and values
    [num kept, E] of those that stay. `rest`: what becomes of the others where they are not gone, met by every later query beside the keys
    that stay (core.rest); None, always, unless has_rest. Never modifies the view.
    """

    @property
    def has_rest(self) -> bool: ...

    def evict(self, view: View, kept: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]] | None: ...

    def rest(self, view: View, kept: Sequence[Tensor]) -> Rest | None: ...


class Trigger(Protocol):
    """When keys are dropped after the prompt: the count of tokens at which it happens next, above num_tokens; None for never.

    num_held: keys that a head holds now, on average and rounded up.
    """

    def next(self, num_tokens: int, *, num_prompt: int, num_held: int, budget: int) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A cache policy. Raises BadField. is_full_kept: the whole prompt stays in the prefix store, for prompts that begin alike.

    chunk: tokens of a prompt after which keys over the budget are dropped already; None: when all of it is read.
    """

    name: str
    scorer: Scorer
    allocator: Allocator
    evictor: Evictor
    trigger: Trigger
    keep: float = 0.5  # up to 1: share of the prompt's keys that a head keeps; above: number of keys
    is_full_kept: bool = False
    chunk: int | None = None
    guarantee = Guarantee.APPROXIMATE

    def __post_init__(self) -> None:
        if not (0 < self.keep <= 1 or (self.keep > 1 and self.keep == int(self.keep))):
            raise BadField(f"cache policy keep={self.keep:g}: must be a share in (0, 1] of the prompt's keys, or a whole number of keys above 1")
        if self.chunk is not None and (self.chunk < 1 or self.is_full_kept or self.scorer.needs.num_ahead):
            raise BadField(
                f"cache policy {self.name} chunk={self.chunk}, is_full_kept={self.is_full_kept}: chunk must be at least 1; with one no prompt "
                "stays whole, and nobody can write on from it"
            )

    @property
    def label(self) -> str:
        """Equal only for equal policies: a part of the model's id."""
        return f"{self.name}-{self.keep:g}-{zlib.crc32(repr(self).encode()):08x}"

    def due_in_prompt(self, num_tokens: int, num_prompt: int) -> int:
        """The count of tokens, above num_tokens, at which keys are next dropped while a prompt is read."""
        return num_prompt if self.chunk is None else min(num_prompt, num_tokens + self.chunk)

    def budget(self, num_prompt: int) -> int:
        """Keys that a head keeps, on average."""
        return share_of(self.keep, num_prompt)


def share_of(keep: float, num: int) -> int:
    """How many of `num` a share in (0, 1] means, at least 1; above 1 `keep` is a number itself."""
    return max(1, math.floor(keep * num + 1e-9)) if keep <= 1 else int(keep)


PROTECTED = 1e9  # above any score


def protected(positions: Tensor) -> Tensor:
    """float64 scores of keys that stay before all others; of them, the later ones first."""
    return positions.double() + PROTECTED


def chosen(scores: Tensor, num: int) -> Tensor:
    """int64 [num], ascending: slots of the largest scores [N]; of equal ones the earlier."""
    return scores.sort(descending=True, stable=True).indices[:num].sort().values


def largest_remainders(shares: Tensor, limits: Tensor, total: int) -> Tensor:
    """int64, of the shape of `shares`: whole numbers near them, none above its limit, whose sum is `total` or, if less, the limits'.

    What shares lose by rounding down goes to the largest remainders; what limits cut off, to those below theirs, in turn.
    """
    total = min(total, int(limits.sum()))
    found = torch.minimum(shares.double().floor().long().clamp(min=0), limits)
    order = (shares.double() - shares.double().floor()).flatten().sort(descending=True, stable=True).indices
    flat, most = found.view(-1), limits.reshape(-1)
    while (left := total - int(flat.sum())) > 0:
        open_ones = order[(flat < most)[order]][:left]
        flat[open_ones] += 1
    if left < 0:
        raise BadField(f"shares sum to {int(shares.sum())} keys and the budget is {total}: give shares within the budget")
    return found
