"""REBASE: share out the next steps among the open paths in proportion to exp(reward / temperature).

Paper      Wu et al. 2024, Inference Scaling Laws, arXiv:2408.00724, section 3 (reward balanced search)
Equation   n_i = ceil(b e^{R_i/T} / sum_{j>=i} e^{R_j/T}), best first, b <- b - n_i: the n_i sum to b, which is the width less the answers
Shapes     prompt -> up to width candidates, best verdict first
Guarantee  biased: like step_beam, but softly; width=1 is plain sampling
Cost       about the tokens of width answers, one verdict per step, two turns per step
Choose     with a verifier whose values mean something, not only their order: temperature decides how much a difference counts.
           Rounding up from the top starves the tail: for unbiased shares use particle_filter.
Differs    the length limit is the whole answer's; copies are merged; a node that gets no child is dropped
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Steps, Tree


@dataclass(frozen=True, kw_only=True)
class Rebase:
    width: int = 16  # steps drawn at a time, all paths together
    temperature: float = 0.2  # of the shares: small favours the best, large shares evenly
    steps: Steps = field(default_factory=lambda: Steps(max_steps=25))

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.width < 1 or not self.temperature > 0:
            raise BadField(f"rebase width={self.width}, temperature={self.temperature}: must be at least 1 and above 0")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        paths, left = [tree.root], self.width
        while paths and left > 0 and not tree.is_spent:
            counts = shares([node.reward for node in paths], left, self.temperature)
            grown = yield from self.steps.grow(tree, [node for node, num in zip(paths, counts) for _ in range(num)], rng)
            left -= sum(node.prefix.is_final for node in grown)
            paths = self.steps.open(grown)
        return (yield from self.steps.concluded(tree, rng))


def shares(rewards: Sequence[float], num: int, temperature: float) -> list[int]:
    """How many of `num` children each path gets: whole numbers that sum to `num`. Equal rewards: the earlier gets more."""
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    weights = [math.exp((rewards[i] - rewards[order[0]]) / temperature) for i in order]
    tails = list(itertools.accumulate(reversed(weights)))[::-1]
    counts, left = [0] * len(rewards), num
    for i, weight, tail in zip(order, weights, tails):
        counts[i] = min(left, math.ceil(left * weight / tail - 1e-9)) if weight > 0 else 0
        left -= counts[i]
    return counts
