"""Let an early layer choose: what the prompt's last token attends to there is all that the model then reads.

Paper      GemFilter, Discovering the Gems in Early Layers (Shi et al. 2024, arXiv:2409.17422), algorithm 1.
Equation   score_j = average over `kernel` neighbours of sum over heads h of q_h,last k_h,j at layer `layer`; the `keep` largest stay.
Shapes     queries [1, H, E] and keys [K, N, E] of one layer -> places [num].
Guarantee  approximate: the model reads a part of the prompt, at positions counted from 0; exact where all of it is kept.
Cost       the layers before `layer` over the prompt, then the whole model over what stays; no memory beyond both.
Choose     long prompts that ask for a few places, where a layer is known whose last token looks at them; not to sum up a whole text.
Differs    the first and last tokens always stay, so that a chat's frame does; the paper leaves that to the scores (`first=0,last=0`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import ITSELF
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.pruning import Seen, check_keep, largest


@dataclass(frozen=True, kw_only=True)
class GemFilter:
    keep: float = 0.1  # up to 1: share of the prompt's tokens that stay; above: their number
    layer: float = 0.4  # below 1: share of the layers that come before the one that chooses; from 1 on: its number, counted from 0
    kernel: int = 5  # neighbours whose scores are averaged; odd
    first: int = 4  # tokens at the beginning that stay
    last: int = 16  # tokens at the end that stay
    guarantee = Guarantee.APPROXIMATE
    name = "gemfilter"
    reader = ITSELF
    num_rows = 1

    def __post_init__(self) -> None:
        check_keep("gemfilter", self.keep)
        if self.kernel < 1 or self.kernel % 2 == 0 or min(self.first, self.last) < 0:
            raise BadField(f"gemfilter kernel={self.kernel}, first={self.first}, last={self.last}: kernel must be odd, the others at least 0")

    def layers(self, num_layers: int) -> Sequence[int]:
        layer = int(self.layer * num_layers) if 0 <= self.layer < 1 else int(self.layer)
        if not 0 <= layer < num_layers or (self.layer >= 1 and layer != self.layer):
            raise BadField(f"gemfilter layer={self.layer:g}: must be a share below 1, or a layer of 1 to {num_layers - 1}")
        return (layer,)

    def choose(self, seen: Sequence[Seen], num: int) -> Tensor:
        scores = seen[0].products()[:, -1].sum(0)
        pooled = F.avg_pool1d(scores[None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        return largest(pooled, num, first=self.first, last=self.last)
