"""The tree of prefixes that searches grow, and what they share: judged steps, a frontier, the best so far.

A node's seed is a function of the run's rng and of its path, the child numbers on the way to it. So a tree depends on neither
the order of the answers nor on what runs beside it, and a longer run holds the tree of a shorter one.
"""

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ponder.core.asks import GREEDY, Answer, Candidate, Extend, Judge, Outcome, Prefix, Prompt, Sampling, Turn, Verdict, candidate
from ponder.core.errors import BadField
from ponder.core.rng import Rng
from ponder.core.roles import Verifier
from ponder.core.votes import Weigh, standing, tally
from ponder.infer.ops import MeanProbability, log_odds

HUGE = 1e300  # an infinite verdict counts as this
Rank = tuple[bool, float, tuple[bool, bool, float]]


@dataclass(eq=False)
class Node:
    """A prefix in a tree. What a verifier abstains on (or says NaN of) has no verdict and goes by its parent's."""

    prefix: Prefix
    unjudged: Candidate  # the candidate that the prefix is, read once
    path: tuple[int, ...] = ()  # numbers of the children on the way from the root
    depth: int = 0  # steps from the root
    parent: "Node | None" = None
    origin: int = 0  # which of the tree's roots it grew from
    verdict: Verdict | None = None  # its own
    children: "list[Node]" = field(default_factory=list)  # distinct ones, in the order that they were asked for
    num_asked: int = 0  # children asked for, equal ones included: the next one's number
    num_drawn: int = 1  # how many of its parent's asks were answered by it

    @property
    def is_whole(self) -> bool:
        """Whether it is an answer that was not cut off."""
        return self.prefix.finish in ("stop", "length")

    @property
    def opinion(self) -> Verdict | None:
        """Its verdict, or that of the nearest ancestor that has one."""
        return self.verdict or (self.parent.opinion if self.parent else None)

    @property
    def reward(self) -> float:
        """The opinion as a number in [0, 1]: a score counts as a logit; 1/2 where there is none."""
        known = self.opinion
        if known is None or known.kind == "probability":
            return 0.5 if known is None else min(max(known.value or 0.0, 0.0), 1.0)
        if known.kind == "log_p":
            return math.exp(min(known.value or 0.0, 0.0))
        return 0.5 * (1 + math.tanh(log_odds(known) / 2))

    @property
    def rank(self) -> Rank:
        """Sort key of a search: the opinion, then the likelier."""
        known = self.opinion
        return known is not None, (known.value or 0.0) if known else 0.0, standing(self.unjudged)

    @property
    def candidate(self) -> Candidate:
        return replace(self.unjudged, score=self.verdict.value, verdicts=(self.verdict,)) if self.verdict else self.unjudged


class Tree:
    """What a search has found. `is_spent` once an answer was cut by the budget: a search then asks for nothing more."""

    def __init__(self, prompt: Prompt, num_roots: int = 1) -> None:
        self.prompt = prompt
        empty = Prefix(prompt)
        self.roots = [Node(empty, candidate(empty), (i,) if num_roots > 1 else (), origin=i) for i in range(num_roots)]
        self.nodes: list[Node] = []  # all but the roots, in order of birth
        self.is_spent = False

    @property
    def root(self) -> Node:
        return self.roots[0]

    def add(self, parent: Node, number: int, prefix: Prefix) -> Node | None:
        """The child that `prefix` is: a new one, the equal one that was there, or None where the budget cut it before its first token."""
        if prefix.finish == "budget":
            self.is_spent = True
            if prefix.tokens == parent.prefix.tokens:
                return None
        twin = next((c for c in parent.children if (c.prefix.tokens, c.prefix.finish) == (prefix.tokens, prefix.finish)), None)
        if twin is not None:
            twin.num_drawn += 1
            return twin
        child = Node(prefix, candidate(prefix), (*parent.path, number), parent.depth + 1, parent, parent.origin)
        parent.children.append(child)
        self.nodes.append(child)
        return child

    def best(self) -> tuple[Candidate, ...]:
        """Whole answers, best verdict first, each once per root; while there are none, all that is cut off."""
        first: dict[object, Candidate] = {}
        for n in [n for n in self.nodes if n.is_whole] or self.nodes:
            first.setdefault((n.origin, n.prefix.tokens, n.prefix.finish), n.candidate)
        return tuple(sorted(first.values(), key=rank, reverse=True))

    def outcome(self, weigh: Weigh | None, diagnostics: Mapping[str, object]) -> Outcome:
        """The best verdict first; with `weigh`, the best of the answer that gets most weight, and its share as confidence."""
        found = self.best() or (self.root.unjudged,)
        found = tuple(c if c.finish else replace(c, finish="budget") for c in found)
        about: dict[str, object] = {
            "num_nodes": len(self.nodes),
            "num_whole": sum(n.is_whole for n in self.nodes),
            "num_abstained": sum(n.verdict is None for n in self.nodes),
            "num_equal": sum(n.num_drawn - 1 for n in self.nodes),
            "depth": max((n.depth for n in self.nodes), default=0),
        }
        weights = weigh(found) if weigh else []
        tallies = tally(found, weights, self.prompt.answers) if weigh else ()
        if not tallies:
            return Outcome(found, None, about | dict(diagnostics))
        first = max(tallies[0].members, key=lambda i: (weights[i], -i))
        total = sum(t.weight for t in tallies)
        chosen = (found[first], *found[:first], *found[first + 1 :])
        return Outcome(chosen, tallies[0].weight / total if total > 0 else None, about | dict(diagnostics))


def rank(c: Candidate) -> Rank:
    """Sort key of answers: the verdict, then `standing`. Without a verdict it stands below all that have one."""
    return c.score is not None, c.score or 0.0, standing(c)


def distinct(nodes: Iterable[Node]) -> list[Node]:
    """Each once, in order."""
    return list(dict.fromkeys(nodes))


Growing = Generator[Turn, Sequence[Answer], list[Node]]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a tree grows: sampled steps, each judged. Shared settings of all searches over steps."""

    verifier: Verifier = field(default_factory=MeanProbability)  # judges partial and whole answers
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    max_steps: int = 40  # the last one goes on to the end of the answer
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    min_reward: float = 0.0  # partial answers with an opinion below it (as a probability) are given up
    lookahead: int = 0  # greedy steps after which a partial answer is judged; 0: as it is (Snell et al. 2024, section 5.2)
    weigh: Weigh | None = None  # how the whole answers vote; None: the best verdict wins

    def __post_init__(self) -> None:
        if not self.until and self.step_tokens is None:
            raise BadField("a search without until and step_tokens has one step only; give one of them, or use best_of_n")
        if self.max_steps < 1 or self.lookahead < 0 or not 0 <= self.min_reward <= 1:
            raise BadField(f"max_steps={self.max_steps}, lookahead={self.lookahead}, min_reward={self.min_reward}: at least 1, 0, and in [0, 1]")

    def ask(self, node: Node, number: int, rng: Rng) -> Extend:
        """The step that makes child `number` of `node`."""
        is_last = node.depth + 1 >= self.max_steps or number < 0
        return Extend(
            prefix=node.prefix, seed=rng.seed(*node.path, number), max_tokens=None if is_last else self.step_tokens,
            until=() if is_last else self.until, sampling=self.sampling, certainty=True,
        )  # fmt: skip

    def grow(self, tree: Tree, parents: Sequence[Node], rng: Rng) -> Growing:
        """One child of each of `parents` in one turn, a node standing there as often as it gets children; then their verdicts.

        Returns the children in order; equal ones are one node. Those that the budget cut before their first token are missing.
        """
        numbers = []
        for node in parents:
            numbers.append(node.num_asked)
            node.num_asked += 1
        return (yield from self._grow(tree, list(zip(parents, numbers, strict=True)), rng))

    def complete(self, tree: Tree, nodes: Sequence[Node], rng: Rng) -> Growing:
        """Each of `nodes`, all of them open, goes on to the end of its answer. At most once per node."""
        return (yield from self._grow(tree, [(node, -1) for node in nodes], rng))

    def _grow(self, tree: Tree, wanted: list[tuple[Node, int]], rng: Rng) -> Growing:
        if not wanted:
            return []
        answers = yield Turn(tuple(self.ask(node, number, rng) for node, number in wanted), tree.best())
        known = len(tree.nodes)
        grown = [tree.add(node, number, answer.prefix) for (node, number), answer in zip(wanted, answers, strict=True)]
        yield from self.judge(tree, tree.nodes[known:])
        return [node for node in grown if node is not None]

    def judge(self, tree: Tree, nodes: Sequence[Node]) -> Generator[Turn, Sequence[Answer], None]:
        """Gets a verdict for each of `nodes` that the budget did not cut."""
        new = [n for n in nodes if n.prefix.finish != "budget"]
        if not new:
            return
        ahead = yield from self.foreseen(tree, [n.prefix for n in new])
        asked = tuple(n.unjudged if n.prefix is seen else candidate(seen) for n, seen in zip(new, ahead, strict=True))
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=tree.prompt, candidates=asked),), tree.best())
        for node, verdict in zip(new, told.verdicts, strict=True):
            if verdict.value is not None and not math.isnan(verdict.value):
                node.verdict = replace(verdict, value=min(max(verdict.value, -HUGE), HUGE))

    def foreseen(self, tree: "Tree", prefixes: list[Prefix]) -> Generator[Turn, Sequence[Answer], list[Prefix]]:
        """The prefixes after `lookahead` greedy steps each, which only their judge sees."""
        ahead = list(prefixes)
        for _ in range(self.lookahead):
            going = [] if tree.is_spent else [i for i, prefix in enumerate(ahead) if not prefix.is_final]
            if not going:
                break
            asks = (Extend(prefix=ahead[i], seed=0, max_tokens=self.step_tokens, until=self.until, sampling=GREEDY) for i in going)
            answers = yield Turn(tuple(asks), tree.best())
            for i, answer in zip(going, answers, strict=True):
                ahead[i] = answer.prefix
                tree.is_spent |= answer.prefix.finish == "budget"
        return ahead

    def open(self, nodes: Iterable[Node]) -> list[Node]:
        """Those that may grow: not final, not given up; each once."""
        return [n for n in distinct(nodes) if not n.prefix.is_final and (n.reward >= self.min_reward or n.opinion is None)]

    def concluded(self, tree: Tree, rng: Rng, diagnostics: Mapping[str, object] | None = None) -> Generator[Turn, Sequence[Answer], Outcome]:
        """The outcome. If nothing is whole yet, the best leaf is first brought to its end."""
        leaves = [n for n in (*tree.roots, *tree.nodes) if not n.children and not n.prefix.is_final]
        if leaves and not tree.is_spent and not any(n.is_whole for n in tree.nodes):
            yield from self.complete(tree, [max(leaves, key=lambda n: n.rank)], rng)
        return tree.outcome(self.weigh, diagnostics or {})


class Frontier:
    """Nodes by falling priority; among equal ones whole answers first, then the deeper, then the older."""

    def __init__(self, priority: Callable[[Node], tuple[float, ...]]) -> None:
        self.priority = priority
        self.heap: list[tuple[tuple[float, ...], bool, int, tuple[int, ...], Node]] = []

    def __len__(self) -> int:
        return len(self.heap)

    def push(self, node: Node) -> None:
        falling = tuple(-x for x in self.priority(node))
        heapq.heappush(self.heap, (falling, not node.prefix.is_final, -node.depth, node.path, node))

    def pop(self) -> Node:
        return heapq.heappop(self.heap)[-1]

    def take(self, num: int) -> list[Node]:
        """Up to `num` open nodes from the top; stops before an answer. Empty: the top is an answer, or nothing is left."""
        taken: list[Node] = []
        while self.heap and len(taken) < num and not self.heap[0][-1].prefix.is_final:
            taken.append(self.pop())
        return taken


def explore(
    steps: Steps, tree: Tree, rng: Rng, *, priority: Callable[[Node], tuple[float, ...]], branch: int, parallel: int, num_answers: int,
    max_expansions: int,
) -> Generator[Turn, Sequence[Answer], dict[str, object]]:  # fmt: skip
    """Best-first search from the root: what stands first gets `branch` children, until `num_answers` answers have stood first.

    Expands up to `parallel` nodes in one turn. Returns the number expanded, and the priorities of the answers that stood first.
    """
    frontier = Frontier(priority)
    frontier.push(tree.root)
    firsts: list[Node] = []
    num_expanded = 0
    while len(frontier) and len(firsts) < num_answers and num_expanded < max_expansions and not tree.is_spent:
        nodes = frontier.take(min(parallel, max_expansions - num_expanded))
        if not nodes:
            firsts.append(frontier.pop())
            continue
        num_expanded += len(nodes)
        grown = yield from steps.grow(tree, [node for node in nodes for _ in range(branch)], rng)
        for node in [n for n in distinct(grown) if n.is_whole] + steps.open(grown):
            frontier.push(node)
    return {"num_expanded": num_expanded, "first_priorities": [priority(node)[0] for node in firsts]}
