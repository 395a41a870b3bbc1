"""Let fewer and fewer of a prompt's tokens through to the later layers, and let any of them come back when an answer looks at it.

Paper      LazyLLM (Fu et al. 2024, arXiv:2407.14057), sections 3.1 and 3.2.
Equation   score_j = mean over heads h of a_h,newest,j in the layer before the cut; behind cut i of `cuts` the n keep^(i / cuts) largest of n
           tokens go on; what left rests as it was there, and goes on from there when a later token's scores choose it.
Shapes     one query [1, H, E] and the keys [K, N, E] that the layer knows -> indices [num].
Guarantee  approximate: later layers know a part of the prompt; exact where all of it is kept.
Cost       a prompt's token meets (1 + sum over stretches of its share) of the layers; each token a layer once at most. The hidden states
           of tokens that left take 4 D bytes each, behind each cut. No key is saved: there is room for all to come back.
Choose     long prompts with short answers, where nothing is known of the model's layers; memory is not what is short.
Differs    the newest token meets all keys that a layer knows, chosen now or before; shares fall by equal factors at evenly spaced layers,
           where the paper searches them; the prompt's last token always goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.pruning import Seen, check_keep, largest


@dataclass(frozen=True, kw_only=True)
class LazyLLM:
    keep: float = 0.1  # of the prompt's tokens behind the last cut: up to 1 a share, above their number
    start: float = 0.3  # share of the layers before the first cut
    num_cuts: int = 3
    guarantee = Guarantee.APPROXIMATE
    name = "lazyllm"

    def __post_init__(self) -> None:
        check_keep("lazyllm", self.keep)
        if not 0 < self.start < 1 or self.num_cuts < 1:
            raise BadField(f"lazyllm start={self.start:g}, num_cuts={self.num_cuts}: start must be in (0, 1), num_cuts at least 1")

    def cuts(self, num_layers: int) -> Sequence[int]:
        places = (self.start + i * (1 - self.start) / self.num_cuts for i in range(self.num_cuts))
        found = [max(0, round(place * num_layers) - 1) for place in places]
        if len(set(found)) < len(found) or found[-1] >= num_layers - 1:
            raise BadField(f"lazyllm start={self.start:g}, num_cuts={self.num_cuts}: {num_layers} layers have no room for so many cuts behind it")
        return found

    def num_kept(self, cut: int, num_prompt: int) -> int:
        last = self.keep if self.keep <= 1 else min(1.0, self.keep / num_prompt)
        return max(1, int(num_prompt * last ** ((cut + 1) / self.num_cuts) + 1e-9))

    def choose(self, seen: Seen, num: int) -> Tensor:
        return largest(seen.weights()[:, -1].mean(0), num, last=1)
