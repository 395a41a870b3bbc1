"""Bugs of tree searches, each rebuilt small: the wrong piece, the right one, and the law that tells them apart."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from unittest import mock

from ponder.core.asks import Outcome, Turn
from ponder.core.errors import BadField
from ponder.core.rng import hash_seed
from ponder.infer import ab_mcts, mcts, tree
from ponder.infer.ab_mcts import AbMcts
from ponder.infer.astar import AStar, progress
from ponder.infer.best_first import BestFirst
from ponder.infer.dvts import Dvts
from ponder.infer.mcts import Mcts
from ponder.infer.step_beam import StepBeam
from ponder.infer.tree import Steps, Tree
from ponder.testing import laws_search, laws_strategy
from ponder.testing.exact import require
from ponder.testing.verifiers import Abstaining, Reckless

TWO = Steps(until=(), step_tokens=2)
ONE = Steps(until=(), step_tokens=1)


# ---- what the budget buys


@dataclass(frozen=True, kw_only=True)
class RefillingBeam(StepBeam):
    """Keeps `width` beams open however many are finished."""

    def run(self, prompt, rng):
        tree = Tree(prompt)
        beams = [tree.root]
        while beams and not tree.is_spent:
            grown = yield from self.steps.grow(tree, [beams[i % len(beams)] for i in range(self.width)], rng)
            ranked = sorted(self.steps.open(grown), key=lambda node: node.rank, reverse=True)
            beams = ranked[: math.ceil(self.width / self.branch)]
        return (yield from self.steps.concluded(tree, rng))


def law_pays_for_five(strategy):
    laws_search.law_pays_for_width_answers(strategy, 5)


def all_rounded_up(rewards, num, temperature):
    """Every share is rounded up on its own."""
    weights = [math.exp((r - max(rewards)) / temperature) for r in rewards]
    return [math.ceil(num * w / sum(weights)) for w in weights]


def first_come_first_served(rewards, num, temperature):
    """What is left goes down in the order of the paths instead of their rewards."""
    weights = [math.exp((r - max(rewards)) / temperature) for r in rewards]
    counts, left = [], num
    for i, w in enumerate(weights):
        counts.append(min(left, math.ceil(left * w / sum(weights[i:]) - 1e-9)) if sum(weights[i:]) > 0 else 0)
        left -= counts[-1]
    return counts


@dataclass(frozen=True, kw_only=True)
class PaddedStepBeam(StepBeam):
    """Fills the list of answers up to the width with copies."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        return replace(outcome, candidates=tuple(itertools.islice(itertools.cycle(outcome.candidates), self.width + len(outcome.candidates))))


# ---- what is kept


@dataclass(frozen=True, kw_only=True)
class LastLevelBeam(StepBeam):
    """Answers that were finished on an earlier level are lost once a later level ends."""

    def run(self, prompt, rng):
        running, last = super().run(prompt, rng), []
        turn = next(running)
        try:
            while True:
                answers = yield turn
                last = [a.prefix for a in answers if hasattr(a, "prefix")] or last
                turn = running.send(answers)
        except StopIteration as stop:
            kept = {p.tokens for p in last}
            return replace(stop.value, candidates=tuple(c for c in stop.value.candidates if c.tokens in kept) or stop.value.candidates)


@dataclass(frozen=True, kw_only=True)
class LastVisited(BestFirst):
    """Returns the answer that was found last."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        newest = max(outcome.candidates, key=lambda c: (len(c.tokens), c.tokens))
        return replace(outcome, candidates=(newest, *(c for c in outcome.candidates if c is not newest)))


@dataclass(frozen=True, kw_only=True)
class ShowsNothing(StepBeam):
    """Has no answer to show until it is done."""

    def run(self, prompt, rng):
        return (yield from hidden(super().run(prompt, rng)))


def hidden(running) -> Generator[Turn, object, Outcome]:
    try:
        turn = next(running)
        while True:
            turn = running.send((yield replace(turn, best=())))
    except StopIteration as stop:
        return stop.value


# ---- who may look at whom


@dataclass(frozen=True, kw_only=True)
class MixedSubtrees(Dvts):
    """Goes on from the best of all subtrees together."""

    def run(self, prompt, rng):
        tree = Tree(prompt, num_roots=self.width // self.branch)
        active = tree.roots
        while active and not tree.is_spent:
            grown = yield from self.steps.grow(tree, [node for node in active for _ in range(self.branch)], rng)
            ranked = sorted(self.steps.open(grown), key=lambda node: node.rank, reverse=True)
            active = ranked[: len(tree.roots)]
        return (yield from self.steps.concluded(tree, rng))


def law_three_steps_apart(search):
    laws_search.law_subtrees_stay_apart(lambda num: search(width=3 * num, branch=3, steps=TWO))


COUNT = itertools.count()


@dataclass(frozen=True, kw_only=True)
class CountedSeeds(Steps):
    """Seeds from one counter for all runs: whoever asks first gets the first."""

    def ask(self, node, number, rng):
        return replace(super().ask(node, number, rng), seed=hash_seed(next(COUNT)))


@dataclass(frozen=True, kw_only=True)
class PositionSeeds(Steps):
    """Seeds from depth and child number alone: cousins repeat each other."""

    def ask(self, node, number, rng):
        return replace(super().ask(node, number, rng), seed=rng.seed(node.depth, number))


def law_seeds_alone_or_in_company(steps):
    laws_search.law_same_tree_in_company(StepBeam(width=4, branch=2, steps=steps))


def law_cousins_differ(steps):
    for key in range(4):
        done = laws_search.searched(StepBeam(width=6, branch=3, steps=steps), key=key)
        seeds = [ask.seed for asks in laws_search.extends(done) for ask in asks]
        require(len(set(seeds)) == len(seeds), f"{len(seeds)} steps share {len(set(seeds))} seeds")


@dataclass(frozen=True, kw_only=True)
class KeepsItsTree(Mcts):
    """Statistics live in the strategy, so the next question begins with those of the last."""

    visits: dict[object, mcts.Visits] = field(default_factory=lambda: defaultdict(mcts.Visits), compare=False)

    def select(self, root, visits, num):
        for node in (root, *root.children):
            visits[node].num += self.visits[node.path].num
            self.visits[node.path].num += 1 if node.depth == 1 and node.path[0] == 0 else 0
        return super().select(root, visits, num)


GLOBAL = random.Random(5)


@dataclass(frozen=True, kw_only=True)
class GlobalThompson(AbMcts):
    """Draws its beliefs from one generator that all runs share."""

    def descend(self, node, known, draw):
        return super().descend(node, known, GLOBAL)


# ---- verdicts


@dataclass(frozen=True, kw_only=True)
class TrustingSteps(Steps):
    """Takes every verdict as a number, NaN included."""

    def judge(self, tree, nodes):
        asked = Steps.judge(self, tree, nodes)
        try:
            turn = next(asked)
            told = yield turn
            asked.send(told)
        except StopIteration:
            for node, verdict in zip([n for n in nodes if n.prefix.finish != "budget"], told[0].verdicts if nodes else ()):
                node.verdict = verdict if verdict.value is not None else None


def law_any_verdict_is_survived(steps):
    for search in (StepBeam(width=6, branch=2, steps=steps), BestFirst(steps=steps)):
        laws_strategy.law_says_what_it_is(search)
        for key in range(8):
            for c in laws_search.searched(search, key=key).result.candidates:
                require(c.score is None or math.isfinite(c.score), f"a score of {c.score}")


@dataclass(frozen=True, kw_only=True)
class SilenceKills(Steps):
    """An abstention counts as the lowest verdict, and the branch is given up."""

    def open(self, nodes):
        return [n for n in super().open(nodes) if n.verdict is not None]


def law_silence_leaves_the_search_going(steps):
    done = laws_search.searched(StepBeam(width=6, branch=2, steps=steps), key=2)
    lengths = [len(ask.prefix.tokens) for asks in laws_search.extends(done) for ask in asks]
    require(max(lengths) > 1, "with a silent verifier no branch goes on")


# ---- A*


@dataclass(frozen=True, kw_only=True)
class EstimatesPaid(AStar):
    """The estimate of the node before is handed on as if it had been paid."""

    def promise(self, node):
        paid, child = 0.0, node
        while (before := child.parent) is not None:
            was = 1.0 - before.reward if before.parent else 0.0
            paid += self.cost(was, 1.0 - child.reward) + was
            child = before
        return (-(paid + 1.0 - node.reward),)


@dataclass(frozen=True, kw_only=True)
class WrongWay(AStar):
    """Charges the gains where losses were meant to be charged, and the other way round."""

    def promise(self, node):
        return replace(AStar(), cost=lambda before, after: self.cost(after, before)).promise(node)


def law_progress_pays_least(search):
    make = lambda v: search(cost=progress, branch=40, parallel=1, steps=replace(ONE, verifier=v, sampling=laws_strategy.Sampling()))
    laws_search.law_first_answer_costs_least(make, progress, [laws_search.known(seed) for seed in range(12)])


def first_met(self, num):
    """Answers stand first as soon as they are met."""
    answers = [entry for entry in self.heap if entry[-1].prefix.is_final]
    if answers:
        self.heap.remove(min(answers))
        tree.heapq.heapify(self.heap)
        tree.heapq.heappush(self.heap, ((-math.inf,), *min(answers)[1:]))
        return []
    return TAKE(self, num)


TAKE = tree.Frontier.take


def law_goal_is_tested_when_it_stands_first(take):
    with mock.patch.object(tree.Frontier, "take", take):
        law_progress_pays_least(AStar)


# ---- MCTS and AB-MCTS


def leaf_alone_learns(node, reward, visits):
    """Only the node itself is told."""
    visits[node].num += 1
    visits[node].total += reward


def law_ancestors_are_told(learn):
    grove = Tree(laws_search.DEEP)
    child = grove.add(grove.root, 0, replace(grove.root.prefix, tokens=(0,), text="a"))
    visits = defaultdict(mcts.Visits)
    learn(child, 0.75, visits)
    require((visits[grove.root].num, visits[grove.root].total) == (1, 0.75), "the root does not know what was found below")


@dataclass(frozen=True, kw_only=True)
class ExpandsAnswers(Mcts):
    """Final nodes are selected like any other."""

    def is_growing(self, node, taken):
        return node not in taken


def law_leaves_answers_alone(search):
    try:
        laws_search.law_one_ending(search)
    except BadField as error:
        raise AssertionError(str(error)) from error


def sums_alone(rewards):
    """Forgets the prior and the spread of the rewards."""
    return math.fsum(rewards) / max(1, len(rewards)), float(len(rewards)), float(len(rewards)), 0.1


def law_posterior_is_learnt_one_by_one(posterior):
    rewards = [0.3, 0.8, 0.1, 0.9]
    mean, kappa, nu, tau2 = 0.0, 1.0, 1.0, 0.1
    for x in rewards:
        tau2 = (nu * tau2 + kappa * (x - mean) ** 2 / (kappa + 1)) / (nu + 1)
        mean, kappa, nu = (kappa * mean + x) / (kappa + 1), kappa + 1, nu + 1
    found = posterior(rewards)
    require(all(abs(a - b) < 1e-12 for a, b in zip(found, (mean, kappa, nu, tau2))), f"{found} instead of {(mean, kappa, nu, tau2)}")


def copies_are_news(child, known):
    """A child that was there already counts as another success of widening."""
    arms = known[child.parent]
    arms.new.append(child.reward)
    arms.below.setdefault(child, [child.reward])
    node = child.parent
    while node is not None and node.parent is not None:
        known[node.parent].below[node].append(child.reward)
        node = node.parent


def law_finds_the_best_of_few(learn):
    """In a tree of 14 nodes below the root, 250 steps find the best answer."""
    steps = lambda v: Steps(until=(), step_tokens=1, verifier=v, sampling=laws_strategy.Sampling())
    with mock.patch.object(ab_mcts, "learn", learn):
        laws_search.law_finds_the_best(lambda v: AbMcts(num=250, parallel=10, steps=steps(v)))


SILENT, WILD = Abstaining(), Reckless()
