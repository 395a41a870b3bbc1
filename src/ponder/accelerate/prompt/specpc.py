"""Let a small model read the prompt first: the large one reads only what the small one attends to.

Paper      SpecPC, Draft-based Approximate Inference for LLMs (Galim et al. 2025, arXiv:2506.08373), algorithm 2.
Equation   score_j = max over layers from `start` on, heads and last `window` rows i of a_ij (i / (window - 1)), max-pooled over `kernel`
           places; then, from the best place on, each with its `neighbours`, after the window itself, until `keep` tokens are chosen.
Shapes     queries [R, H, E] and keys [K, N, E] of each layer of the draft -> places [num].
Guarantee  approximate: the model reads a part of the prompt, at positions counted from 0; exact where all of it is kept.
Cost       the draft over the prompt, without its last attention and its head, then the whole model over what stays.
Choose     where a much smaller model with the same tokens is at hand; a twin with other weights saves memory traffic, not attention.
Differs    one token of lookahead, as in the released settings: it adds no row to those of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import Twin
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.pruning import Seen, check_keep, largest


@dataclass(frozen=True, kw_only=True)
class SpecPC:
    keep: float = 0.1  # up to 1: share of the prompt's tokens that stay; above: their number
    model: str | None = None  # name or file of the draft; None: this model
    weights: str | None = None  # weight format of the draft; None: the usual one
    start: int = 0  # first layer of the draft whose attention counts
    window: int = 64  # last tokens whose attention counts, and which stay
    kernel: int = 64  # places that share the largest of their scores
    neighbours: int = 64  # places around a chosen one that come with it
    guarantee = Guarantee.APPROXIMATE
    name = "specpc"

    def __post_init__(self) -> None:
        check_keep("specpc", self.keep)
        if min(self.window, self.kernel) < 1 or min(self.start, self.neighbours) < 0:
            raise BadField(
                f"specpc start={self.start}, window={self.window}, kernel={self.kernel}, neighbours={self.neighbours}: "
                "window and kernel must be at least 1, the others at least 0"
            )

    @property
    def reader(self) -> Twin:
        return Twin(model=self.model, weights=self.weights)

    @property
    def num_rows(self) -> int:
        return self.window

    def layers(self, num_layers: int) -> Sequence[int]:
        if self.start >= num_layers:
            raise BadField(f"specpc start={self.start}: the draft has the layers 0 to {num_layers - 1}")
        return range(self.start, num_layers)

    def choose(self, seen: Sequence[Seen], num: int) -> Tensor:
        num_rows = len(seen[0].queries)
        growing = torch.linspace(0, 1, num_rows)[:, None] if num_rows > 1 else torch.ones(1, 1)
        scores = torch.stack([(layer.weights() * growing).amax((0, 1)) for layer in seen]).amax(0)
        before = (self.kernel - 1) // 2
        pooled = F.max_pool1d(F.pad(scores[None], (before, self.kernel - 1 - before)), self.kernel, stride=1)[0]
        best = pooled.sort(descending=True, stable=True).indices[:num]
        return largest(-ranks(self._spread(best, len(pooled)), len(pooled)), num, last=min(self.window, num))

    def _spread(self, best: Tensor, num_tokens: int) -> Tensor:
        """Each place and then its neighbours, the nearest first."""
        if self.neighbours == 0:
            return best
        before = (self.neighbours - 1) // 2
        around = torch.arange(-before, self.neighbours - before)
        around = around[around.abs().argsort(stable=True)]
        return (best[:, None] + around).clamp(0, num_tokens - 1).flatten()


def ranks(order: Tensor, num: int) -> Tensor:
    """float64 [num]: where each place first stands in the order; inf for those that do not."""
    found = torch.full((num,), torch.inf, dtype=torch.float64)
    return found.scatter_reduce_(0, order, torch.arange(len(order), dtype=torch.float64), "amin")
