"""A*-decoding: best-first over steps, where a path also pays for what its verdicts lost on the way.

Paper      Chatziveroglou 2025, arXiv:2505.13672; A*: Hart, Nilsson and Raphael 1968
Equation   f(s) = sum of cost(h, h') over the edges to s + h(s),  h = 1 - r;  drop: max(0, h' - h);  progress: max(0, h - h')
Shapes     prompt -> all answers that were met, best verdict first
Guarantee  biased: tilted towards what the verifier likes; branch=1 is plain sampling
Cost       at most max_expansions x branch steps and verdicts; two turns per `parallel` expansions
Choose     over best_first when verdicts waver. Two costs, as the paper's exact one is known to us at second hand only (an increase
           of h is charged: drop). With U, D the total rise and fall of h from 0 at the root:
           drop      f = 2U - D: losses count twice, a high last verdict still pulls; h is admissible where no continuation gains
                     more than twice what it loses
           progress  f = U: never falls on a path, so h is consistent under any verifier, and (parallel=1) the first answer that
                     stands first has lost least among all in reach; but paths that only improve tie, and the deeper goes first
           Where r never rises, both put the answer with the best verdict first.
Differs    among the answers met the best verdict is returned, which need not be the first
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Node, Steps, Tree, explore


def drop(before: float, after: float) -> float:
    """A loss of reward costs what was lost; a gain is free."""
    return max(0.0, after - before)


def progress(before: float, after: float) -> float:
    """A gain of reward costs what was gained, so that no promise is counted twice; a loss is free, h has it."""
    return max(0.0, before - after)


@dataclass(frozen=True, kw_only=True)
class AStar:
    cost: Callable[[float, float], float] = drop  # (h before, h after) -> cost of the edge: drop or progress
    branch: int = 4  # children of an expanded node
    parallel: int = 2  # nodes expanded in one turn; above 1 the first answer may stand first too early
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
            self.steps, tree, rng, priority=self.promise, branch=self.branch, parallel=self.parallel, num_answers=self.num_answers,
            max_expansions=self.max_expansions,
        )  # fmt: skip
        return (yield from self.steps.concluded(tree, rng, explored))

    def promise(self, node: Node) -> tuple[float, ...]:
        """-f, then -h."""
        remaining = 1.0 - node.reward
        paid, child = 0.0, node
        while (before := child.parent) is not None:
            paid += self.cost(1.0 - before.reward if before.parent else 0.0, 1.0 - child.reward)
            child = before
        return -(paid + remaining), -remaining
