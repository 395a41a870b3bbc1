"""Accept a guess with probability min(1, p / q); what is refused is made up for by drawing from what q left of p.

Paper      Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192;
           Chen et al. 2023, arXiv:2302.01318; on trees Miao et al. 2024, "SpecInfer", arXiv:2305.09781, algorithm 2
Equation   at a row, for its children x with q in order: u < p(x) / q(x) accepts x; else p <- (p - q)+ / sum (p - q)+.
           No child accepted: the next token ~ p. A child that stands for itself has q = 1 at x.
Shapes     tree of M tokens with log q [M, V] or none, log p [V] of the rows on the way -> path of at most its depth, one token
Guarantee  exact: tokens are distributed as plain decoding's, in every length, if each child was drawn from its row of log q given what
           came before; or was no draw at all. Not the tokens that the same seed gives without a draft.
Cost       O(V) per child that is looked at
Choose     for drafters that draw, where more is accepted than by coupled noise: sum_x min(p, q) per token, the most there is.
Differs    where p = q up to rounding nothing is left of p: the child is accepted, which exact arithmetic always does
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.core.draft import ROOT, Accepted, Reads, Target, Tree
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Rejection:
    guarantee = Guarantee.EXACT
    is_identical = False
    reads: ClassVar[Reads] = "log_p"

    def accept(self, tree: Tree, target: Target, rng: Rng) -> Accepted:
        at, path = ROOT, []
        while True:
            p = target.log_p(at + 1).double().exp()
            for i in tree.children[at]:
                is_accepted, p = judged(p, tree, i, rng)
                if is_accepted:
                    path.append(i)
                    at = i
                    break
            else:
                return Accepted(tuple(path), int(rng.categorical(p.log()[None])[0]))


def judged(p: Tensor, tree: Tree, i: int, rng: Rng) -> tuple[bool, Tensor]:
    """Whether child i is accepted under p [V], and what is left of p if it is not."""
    x = tree.tokens[i]
    q = torch.zeros_like(p)
    if tree.log_q is None:
        q[x] = 1.0
    else:
        q[: tree.log_q.shape[1]] = tree.log_q[i].double().exp()
    chance = min(1.0, float(p[x]) / float(q[x])) if float(q[x]) > 0 else 0.0
    left = (p - q).clamp_(min=0.0)
    total = float(left.sum())
    if total <= 0 or not math.isfinite(total):  # p = q
        return True, p
    if float(rng.uniform([torch.tensor([chance], dtype=torch.float64)])[0]) < chance:
        return True, p
    return False, left / total
