"""Which tokens of a prompt a model reads: the roles of pruned prompts (accelerate/prompt).

Two cuts, which may be made together. A `PromptFilter` decides before the model reads: somebody, an early part of the model or another
one, reads all of the prompt, the filter looks at that one's attention, and the model then reads the chosen tokens alone, at positions
counted from 0, as if they had been the prompt: so all that is known of prompts holds for it. A `LayerPlan` decides while the model
reads: behind some layers tokens leave, what is left goes on through the next ones at the positions that it had.

Both are pure: what they choose is a function of the prompt alone, so an answer stays the same alone and in a crowd, in any chunks.

Shapes: N tokens of a prompt, R rows that are seen, H query heads, K key heads, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.draft import Twin
from ponder.core.errors import BadField
from ponder.core.evidence import scores_of, weights_of
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Attention of one layer, from the last of some tokens to all of them."""

    layer: int
    num_layers: int
    queries: Tensor  # [R, H, E], rotated; of the last R tokens
    keys: Tensor  # [K, N, E], rotated
    positions: Tensor  # int64 [N], ascending
    window: int | None = None
    softcap: float | None = None

    @property
    def num(self) -> int:
        return len(self.positions)

    def products(self) -> Tensor:
        """float32 [H, R, N]: q k, whether the token of the key comes later or not."""
        group = self.queries.shape[1] // len(self.keys)
        return self.queries.float().transpose(0, 1) @ self.keys.float().repeat_interleave(group, 0).transpose(1, 2)

    def weights(self) -> Tensor:
        """float32 [H, R, N]: what each of the rows gives to each token; rows sum to 1."""
        num_keys = len(self.keys)
        places, at = self.positions.expand(num_keys, -1), self.positions[-len(self.queries) :]
        scores = scores_of(self.queries, self.keys, places, at, window=self.window, softcap=self.softcap)
        return weights_of(scores).flatten(0, 1)


class PromptFilter(Protocol):
    """Which tokens of a prompt the model reads. Settings in a frozen object, no state."""

    @property
    def name(self) -> str: ...

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def keep(self) -> float:
        """Up to 1: share of the prompt's tokens that stay; above: their number. A prompt of no more tokens is not looked at."""
        ...

    @property
    def reader(self) -> Twin:
        """Who reads all of the prompt first; the default is the model itself."""
        ...

    @property
    def num_rows(self) -> int:
        """Last tokens of the prompt whose queries are seen."""
        ...

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layers of the reader that are seen, ascending; it computes nothing behind the last one's queries and keys. Raises BadField."""
        ...

    def choose(self, seen: Sequence[Seen], num: int) -> Tensor:
        """int64 [num], ascending: places in the prompt of the tokens that stay, from what was seen of those layers."""
        ...


class LayerPlan(Protocol):
    """Behind which layers tokens of a prompt leave. Settings in a frozen object, no state."""

    @property
    def name(self) -> str: ...

    @property
    def guarantee(self) -> Guarantee: ...

    def cuts(self, num_layers: int) -> Sequence[int]:
        """Layers, ascending, behind which tokens leave; none of them the last. Raises BadField."""
        ...

    def num_kept(self, cut: int, num_prompt: int) -> int:
        """Prompt tokens that go on behind cut number `cut`: at least 1, no more than behind the one before."""
        ...

    def choose(self, seen: Seen, num: int) -> Tensor:
        """int64 [num], ascending: which of the prompt's tokens that the layer before the cut knows go on; the prompt's last one always does.

        seen: the attention of the newest token, which is the prompt's last one at first, then one of the answer's: a token that left may
        then come back, as long as the layer before the cut knows it.
        """
        ...


def check_keep(name: str, keep: float) -> None:
    """Raises BadField."""
    if not (0 < keep <= 1 or (keep > 1 and keep == int(keep))):
        raise BadField(f"{name} keep={keep:g}: must be a share in (0, 1] of the prompt's tokens, or a whole number of tokens above 1")


def largest(scores: Tensor, num: int, *, first: int = 0, last: int = 0) -> Tensor:
    """int64 [num], ascending: places of the largest scores [N]; the first and last so many stay before all others, the last before the first.

    Of equal scores the earlier place stays.
    """
    places, scores = torch.arange(len(scores)), scores.double()
    scores = torch.where(places < first, torch.inf, scores)
    order = scores.sort(descending=True, stable=True).indices
    is_last = order >= len(scores) - last
    return torch.cat([order[is_last].sort(descending=True).values, order[~is_last]])[:num].sort().values
