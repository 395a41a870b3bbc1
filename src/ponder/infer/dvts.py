"""Diverse verifier tree search: several greedy searches side by side that never look at each other.

Paper      Beeching, Tunstall and Rush 2024, Scaling test-time compute with open models (search-and-learn)
Equation   in subtree g:  s_g <- argmax { r(s) : s one of M children of s_g }, until s_g is an answer
Shapes     prompt -> up to width candidates of width/branch subtrees, best verdict first
Guarantee  biased: tilted towards what the verifier likes in each subtree; width=1 is plain sampling
Cost       about branch times the tokens of width/branch answers, one verdict per step, two turns per step
Choose     when step_beam ends with many copies of one idea: subtrees keep it diverse, so votes and larger widths gain more
Differs    a subtree's finished siblings of its last step are candidates, its unfinished ones are not; equal siblings are merged,
           equal answers of two subtrees are not, so that they count twice in a vote
"""

from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Steps, Tree


@dataclass(frozen=True, kw_only=True)
class Dvts:
    width: int = 8  # steps drawn at a time, all subtrees together
    branch: int = 4  # steps drawn in each subtree; must divide width
    steps: Steps = field(default_factory=Steps)

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.width < 1 or self.branch < 1 or self.width % self.branch:
            raise BadField(f"dvts width={self.width}, branch={self.branch}: the branch must divide the width into subtrees")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt, num_roots=self.width // self.branch)
        active = tree.roots
        while active and not tree.is_spent:
            grown = yield from self.steps.grow(tree, [node for node in active for _ in range(self.branch)], rng)
            mine = [[node for node in grown if node.origin == g] for g in range(len(tree.roots))]
            active = self.steps.open(max(nodes, key=lambda node: node.rank) for nodes in mine if nodes)
        return (yield from self.steps.concluded(tree, rng))
