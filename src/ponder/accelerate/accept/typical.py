"""Accept every guess that is likely enough, the more so the less the target knows; keep the longest path.

Paper      Cai et al. 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", arXiv:2401.10774,
           section 2.3.1
Equation   child x of row r is accepted where p_r(x) > min(epsilon, delta exp(-H(p_r))); the longest accepted path wins, the first of
           equals; the token after it is the target's own draw
Shapes     tree of M tokens, log p [V] of M + 1 rows, M + 1 drawn tokens -> path of at most its depth, one token
Guarantee  biased: answers follow the drafter where the target finds it plausible; distribution and quality are the drafter's in part
Cost       O(V) per row that is reached
Choose     where any plausible text will do and speed matters most; never where a probability is read off an answer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Typical:
    epsilon: float = 0.09  # a probability that is always enough
    delta: float = 0.3  # share of exp(-entropy) that is enough

    guarantee = Guarantee.BIASED
    is_identical = False
    reads: ClassVar[Reads] = "log_p"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1 or not self.delta > 0:
            raise BadField(f"typical epsilon={self.epsilon}, delta={self.delta}: epsilon must be in (0, 1], delta positive")

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        todo, best = [ROOT], ROOT
        while todo:
            at = todo.pop(0)
            best = at if at != ROOT and (best == ROOT or tree.depths[at] > tree.depths[best]) else best
            if tree.children[at]:
                log_p = target.log_p(at + 1).double()
                p = log_p.exp()
                entropy = -float(torch.where(p > 0, p * log_p, 0.0).sum())
                least = min(self.epsilon, self.delta * float(torch.tensor(-entropy).exp()))
                todo += [i for i in tree.children[at] if float(p[tree.tokens[i]]) > least]
        return Accepted(tree.path(best), target.drawn[best + 1])
