"""Monte Carlo tree search over steps: go down by value and curiosity, add children, tell all ancestors what they are worth.

Paper      Kocsis and Szepesvari 2006 (UCT); Silver et al. 2017 (PUCT); Liu et al. 2020, arXiv:1810.11755 (many at once)
Equation   child = argmax Q + c P sqrt(N) / (1 + n)  (puct)  or  Q + c sqrt(log N / n)  (uct);  Q mean reward, N, n visits
Shapes     prompt -> all answers that were met, best verdict first
Guarantee  biased: tilted towards what the verifier likes; branch=1 is plain sampling
Cost       num x branch steps and verdicts (with rollouts as many whole answers more); two (four) turns per `parallel` expansions
Choose     for long searches with a noisy verifier: it averages over a subtree, where best_first believes one verdict. For a
           few dozen steps beams and best_first do as well at less.
Differs    children are drawn from the model, so P is the share of draws that gave the child; visits under way count at once,
           their values when known; subtrees with nothing left to grow are closed; the answer is the best verdict, not the most visited
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Node, Steps, Tree, distinct


@dataclass
class Visits:
    num: int = 0
    total: float = 0.0  # sum of their rewards

    @property
    def mean(self) -> float:
        return self.total / self.num if self.num else 0.5


def puct(prior: float, num: int, num_parent: int) -> float:
    """How curious to be about a child."""
    return prior * math.sqrt(num_parent) / (1 + num)


def uct(prior: float, num: int, num_parent: int) -> float:
    """How curious to be about a child, whatever its prior."""
    return math.sqrt(math.log(max(1, num_parent)) / max(1, num))


@dataclass(frozen=True, kw_only=True)
class Mcts:
    num: int = 32  # nodes expanded
    branch: int = 4  # children of an expanded node
    parallel: int = 4  # nodes expanded in one turn
    curiosity: Callable[[float, int, int], float] = puct  # (prior, visits, visits of the parent) -> puct or uct
    exploration: float = 1.25  # c: how much curiosity counts against the mean reward
    is_rolled_out: bool = False  # a child is worth what the verifier says of a whole answer that begins with it
    steps: Steps = field(default_factory=Steps)

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.num, self.branch, self.parallel) < 1 or not self.exploration >= 0:
            raise BadField(f"{self}: num, branch and parallel must be at least 1, exploration at least 0")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        visits: defaultdict[Node, Visits] = defaultdict(Visits)
        num_left = self.num
        while num_left and not tree.is_spent and (leaves := self.select(tree.root, visits, min(self.parallel, num_left))):
            num_left -= len(leaves)
            grown = distinct((yield from self.steps.grow(tree, [leaf for leaf in leaves for _ in range(self.branch)], rng)))
            worth = {node: node.reward for node in grown}
            if self.is_rolled_out and not tree.is_spent:
                rolled = yield from self.steps.complete(tree, self.steps.open(grown), rng)
                worth |= {node.parent: node.reward for node in rolled if node.parent}
            for node in grown:
                learn(node, worth[node], visits)
        about = {"num_expanded": self.num - num_left, "mean_reward": visits[tree.root].mean}
        return (yield from self.steps.concluded(tree, rng, about))

    def select(self, root: Node, visits: dict[Node, Visits], num: int) -> list[Node]:
        """Up to `num` different leaves to expand; what is on the way to one counts as visited for the next."""
        leaves: list[Node] = []
        under_way: Counter[Node] = Counter()

        def promise(child: Node) -> float:
            parent = child.parent or root
            prior = child.num_drawn / max(1, parent.num_asked)
            nums = [visits[n].num + under_way[n] for n in (child, parent)]
            return visits[child].mean + self.exploration * self.curiosity(prior, *nums)

        while len(leaves) < num and self.is_growing(root, leaves):
            node = root
            under_way[node] += self.branch
            while inner := steps_from(node):
                node = max((c for c in inner if self.is_growing(c, leaves)), key=promise)
                under_way[node] += self.branch
            leaves.append(node)
        return leaves

    def is_growing(self, node: Node, taken: list[Node]) -> bool:
        """Whether a leaf that may be expanded, and is not taken, is left below."""
        inner = steps_from(node)
        return any(self.is_growing(c, taken) for c in inner) if inner else node not in taken and bool(self.steps.open([node]))


def learn(node: Node | None, reward: float, visits: dict[Node, Visits]) -> None:
    """Tells a node and all above it."""
    while node is not None:
        visits[node].num += 1
        visits[node].total += reward
        node = node.parent


def steps_from(node: Node) -> list[Node]:
    """Its children, rollouts left out."""
    return [c for c in node.children if c.path[-1] >= 0]
