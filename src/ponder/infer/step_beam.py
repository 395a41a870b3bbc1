"""Step beam search: of `width` next steps keep the best, and go on from them with `width` steps again.

Paper      Snell et al. 2024, arXiv:2408.03314, section 5.1; Beeching, Tunstall and Rush 2024 (search-and-learn)
Equation   B_t = top_{ceil(n/M)} { s : s a child of B_{t-1} } by r(s), n children in all; n falls by one with every answer
Shapes     prompt -> up to width candidates, best verdict first
Guarantee  biased: tilted towards what the verifier likes early; width=1 is plain sampling
Cost       about the tokens of width answers, one verdict per step, two turns per step
Choose     with a verifier that is right about partial answers. It commits early: dvts keeps the paths apart, rebase shares out softly.
Differs    an answer that is finished leaves the beam, so width answers are paid for and never more; copies are merged, not padded
           back; the n children are dealt evenly to the beams kept. Look-ahead is a setting of the steps, for every search
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Steps, Tree


@dataclass(frozen=True, kw_only=True)
class StepBeam:
    width: int = 8  # steps drawn at a time, all beams together
    branch: int = 4  # steps drawn from each beam that is kept
    steps: Steps = field(default_factory=Steps)

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.width < 1 or self.branch < 1:
            raise BadField(f"step_beam width={self.width}, branch={self.branch}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        beams, left = [tree.root], self.width
        while beams and left > 0 and not tree.is_spent:
            grown = yield from self.steps.grow(tree, [beams[i % len(beams)] for i in range(left)], rng)
            left -= sum(node.prefix.is_final for node in grown)
            ranked = sorted(self.steps.open(grown), key=lambda node: node.rank, reverse=True)
            beams = ranked[: math.ceil(left / self.branch)]
        return (yield from self.steps.concluded(tree, rng))
