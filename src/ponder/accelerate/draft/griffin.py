"""The target itself draws ahead with the part of every feed-forward that the request's own prompt used most, over its own keys.

Paper      Dong et al. 2024, "Prompt-prompted Adaptive Structured Pruning for Efficient LLM Generation" (GRIFFIN), arXiv:2404.01365; as a
           drafter in Zhou et al. 2024, "Sirius: Contextual Sparsity with Correction for Efficient LLMs", arXiv:2409.03856
Equation   s_f = sqrt(sum_t (z_tf / |z_t|)^2), z = act(gate x) * up x of the prompt's tokens t; kept: the `share` of places f with the largest s,
           by units that the weight format keeps together. t_i ~ q_kept(. | context, t_<i), drawn with the target's own noise
Shapes     z [T, F] of each layer -> units [at most F / unit] kept; contexts -> chains of at most min(num, room) tokens with chances
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       per token drafted a pass with `share` of the feed-forward; per request once a reading of at most `seen` tokens, and a copy of what it
           keeps: `share` of the feed-forward's bytes, held while it runs
Choose     wide feed-forwards and long answers to one prompt. In a small model attention and head are half of a pass, and it does not pay.
Differs    the prompt's last `seen` tokens are read by themselves; Sirius accepts what is likely enough and may put it wrong, here an acceptor
           decides; attention heads all stay (Liu et al. 2023, "Deja Vu", leaves some out, by trained predictors)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ponder.accelerate.draft.chains import Chaining
from ponder.core.draft import Host, Needs, Scope, Twin
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Griffin:
    share: float = 0.5  # of every feed-forward's inner numbers, kept
    seen: int = 256  # tokens of the prompt that choose, its last ones
    num: int = 4  # most tokens of a draft
    least: float = 0.4  # probability below which a token ends the draft
    is_weighed: bool = False  # says what each token was drawn from, for the `rejection` acceptor

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.seen < 1 or self.num < 1 or not 0 <= self.least <= 1:
            raise BadField(f"griffin {self}: share must be in (0, 1], seen and num at least 1, least in [0, 1]")

    @property
    def num_seen(self) -> int:
        return self.seen

    def units(self, inner_TF: Tensor, unit: int) -> Tensor:
        """The units with the most of what the tokens' rows, each of length 1, have there."""
        size_T1 = inner_TF.norm(dim=1, keepdim=True).clamp_min(1e-12)
        energy_U = (inner_TF / size_T1).square().sum(0).view(-1, unit).sum(1)
        return energy_U.topk(max(1, round(self.share * len(energy_U)))).indices.sort().values

    def open(self, host: Host) -> Chaining:
        """Raises BadField for a model whose feed-forward cannot be had in part."""
        return Chaining(host, host.runner(Twin(inner=self)), self.num, self.least, self.is_weighed)
