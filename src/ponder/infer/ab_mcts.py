"""AB-MCTS: at every node draw from what is believed of each choice whether to go wider (a new child) or deeper (an old one).

Paper      Inoue et al. 2025, Wider or Deeper?, arXiv:2503.04412 (treequest)
Equation   per choice j:  theta_j ~ p(theta | rewards below j),  go where theta_j is largest  (Thompson sampling)
Shapes     prompt -> all answers that were met, best verdict first
Guarantee  biased: tilted towards what the verifier likes; num=1 is plain sampling
Cost       num steps and verdicts, one child at a time; two turns per `parallel` children
Choose     when it is not known whether the task wants many tries or long ones: no branching factor is to be set
Differs    nodes are steps, so deeper means on, not over again, and answers are no choice; a copy of a sibling counts as reward 0.
           gaussian and beta are variant A; mixed is M with its two scales integrated over a grid instead of by MCMC
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Node, Steps, Tree

Rewards = Sequence[float]
SCALES = (0.0784, 0.2372, 0.4023, 0.5791, 0.7764, 1.0100, 1.3180, 1.8627)  # half-normal: middles of eight equal parts


@dataclass
class Arms:
    """What is known at a node."""

    new: list[float] = field(default_factory=list)  # rewards of its children, each time that one was drawn
    below: dict[Node, list[float]] = field(default_factory=dict)  # child -> its own reward, then those further down


Choose = Callable[[Arms, Sequence[Node], random.Random], Node | None]  # (arms, children that can go on, draws) -> one, or None: a new one


def gaussian_posterior(rewards: Rewards) -> tuple[float, float, float, float]:
    """(mean, kappa, nu, tau^2): what the normal-inverse-chi-squared prior (0, 1, 1, 0.1) becomes."""
    num, average = len(rewards), math.fsum(rewards) / max(1, len(rewards))
    spread = math.fsum((x - average) ** 2 for x in rewards)
    return num * average / (1 + num), 1.0 + num, 1.0 + num, (0.1 + spread + num * average**2 / (1 + num)) / (1 + num)


def beta_posterior(rewards: Rewards) -> tuple[float, float]:
    """(a, b): what Jeffreys' prior (1/2, 1/2) becomes, a reward counting as that share of a success."""
    return 0.5 + math.fsum(rewards), 0.5 + math.fsum(1 - x for x in rewards)


def gaussian_mean(rewards: Rewards, draw: random.Random) -> float:
    mean, kappa, nu, tau2 = gaussian_posterior(rewards)
    variance = nu * tau2 / (2 * draw.gammavariate(nu / 2, 1.0))
    return draw.gauss(mean, math.sqrt(variance / kappa))


def aggregated(sample: Callable[[Rewards, random.Random], float], arms: Arms, old: Sequence[Node], draw: random.Random) -> Node | None:
    """First new or old, the old ones taken together; then which old one."""
    deeper = [x for rewards in arms.below.values() for x in rewards[1:]]
    if sample(arms.new, draw) >= sample(deeper, draw):
        return None
    return max(old, key=lambda child: sample(arms.below[child], draw))


def gaussian(arms: Arms, old: Sequence[Node], draw: random.Random) -> Node | None:
    return aggregated(gaussian_mean, arms, old, draw)


def beta(arms: Arms, old: Sequence[Node], draw: random.Random) -> Node | None:
    return aggregated(lambda rewards, rng: rng.betavariate(*beta_posterior(rewards)), arms, old, draw)


def shared_mean(groups: Sequence[Rewards], between: float, within: float) -> tuple[float, float, float]:
    """(log evidence, mean, precision) of mu, for y_jn ~ N(a_j, within^2), a_j ~ N(mu, between^2), mu ~ N(0.5, 0.2^2)."""
    precision, weighted, log_evidence = 1 / 0.2**2, 0.5 / 0.2**2, -0.5 * (0.5 / 0.2) ** 2 - math.log(0.2)
    for rewards in groups:
        num, average = len(rewards), math.fsum(rewards) / len(rewards)
        spread = math.fsum((x - average) ** 2 for x in rewards)
        w = 1 / (between**2 + within**2 / num)
        log_evidence += 0.5 * (math.log(w) - w * average**2 - math.log(num) - num * math.log(2 * math.pi))
        log_evidence -= (num - 1) * math.log(within) + spread / (2 * within**2)
        precision, weighted = precision + w, weighted + w * average
    return log_evidence + 0.5 * (weighted**2 / precision - math.log(precision)), weighted / precision, precision


def mixed(arms: Arms, old: Sequence[Node], draw: random.Random) -> Node | None:
    """The next reward of each old child, and of a new one, predicted by a mixed model; the largest wins."""
    scales = [(0.2 * between, 0.3 * within) for between in SCALES for within in SCALES]
    fits = [shared_mean(list(arms.below.values()), *scale) for scale in scales]
    top = max(fit[0] for fit in fits)
    (between, within), (_, mean, precision) = draw.choices(list(zip(scales, fits)), [math.exp(fit[0] - top) for fit in fits])[0]
    mu = draw.gauss(mean, 1 / math.sqrt(precision))
    best, chosen = draw.gauss(draw.gauss(mu, between), within), None
    for child in old:
        rewards = arms.below[child]
        known = 1 / between**2 + len(rewards) / within**2
        a = draw.gauss((mu / between**2 + math.fsum(rewards) / within**2) / known, 1 / math.sqrt(known))
        predicted = draw.gauss(a, within)
        if predicted > best:
            best, chosen = predicted, child
    return chosen


@dataclass(frozen=True, kw_only=True)
class AbMcts:
    num: int = 32  # steps drawn in all
    parallel: int = 4  # steps drawn in one turn, chosen from equal knowledge by different draws
    choose: Choose = gaussian  # gaussian, beta or mixed
    steps: Steps = field(default_factory=Steps)

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.num, self.parallel) < 1:
            raise BadField(f"ab_mcts num={self.num}, parallel={self.parallel}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        known: defaultdict[Node, Arms] = defaultdict(Arms)
        for first in range(0, self.num, self.parallel):
            trials = range(first, min(first + self.parallel, self.num))
            asked = [self.descend(tree.root, known, random.Random(rng.fork(1).seed(trial))) for trial in trials if not tree.is_spent]
            for child in (yield from self.steps.grow(tree, asked, rng)):
                learn(child, known)
        return (yield from self.steps.concluded(tree, rng))

    def descend(self, node: Node, known: dict[Node, Arms], draw: random.Random) -> Node:
        """The node that gets the next child."""
        while old := self.steps.open(node.children):
            chosen = self.choose(known[node], old, draw)
            if chosen is None:
                break
            node = chosen
        return node


def learn(child: Node, known: dict[Node, Arms]) -> None:
    """A drawn child tells its parent, and all above through which of their children it came. A copy is worth nothing new: 0."""
    arms = known[child.parent or child]
    reward = 0.0 if child in arms.below else child.reward
    arms.new.append(reward)
    arms.below.setdefault(child, [reward])
    node = child.parent
    while node is not None and node.parent is not None:
        known[node.parent].below[node].append(reward)
        node = node.parent
