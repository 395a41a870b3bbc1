"""Best-first search: of everything found so far, go on from what the verifier likes best.

Paper      Pearl 1984, Heuristics, chapter 2; over steps of language models: Koh et al. 2024, arXiv:2407.01476
Equation   expand argmax_{s in frontier} r(s) into `branch` children, until num_answers answers have stood first
Shapes     prompt -> all answers that were met, best verdict first
Guarantee  biased: tilted towards what the verifier likes; branch=1 is plain sampling
Cost       at most max_expansions x branch steps and verdicts; two turns per `parallel` expansions
Choose     when the budget should follow the verifier and may return to an earlier step, which beams cannot. Short paths are
           judged higher by many verifiers, so it may stay shallow: astar charges for what was lost on the way.
Differs    several nodes are expanded in one turn; equal priorities go to answers, then to the deeper
"""

from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import HUGE, Node, Steps, Tree, explore


@dataclass(frozen=True, kw_only=True)
class BestFirst:
    branch: int = 4  # children of an expanded node
    parallel: int = 2  # nodes expanded in one turn
    num_answers: int = 1  # answers that must have stood first; more spend more
    max_expansions: int = 32  # nodes expanded, at most
    steps: Steps = field(default_factory=Steps)

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.branch, self.parallel, self.num_answers, self.max_expansions) < 1:
            raise BadField(f"{self}: branch, parallel, num_answers and max_expansions must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        explored = yield from explore(
            self.steps, tree, rng, priority=opinion, branch=self.branch, parallel=self.parallel, num_answers=self.num_answers,
            max_expansions=self.max_expansions,
        )  # fmt: skip
        return (yield from self.steps.concluded(tree, rng, explored))


def opinion(node: Node) -> tuple[float, ...]:
    """The verdict that the node goes by; without any it comes last."""
    return (float(node.opinion.value or 0.0) if node.opinion else -HUGE,)
