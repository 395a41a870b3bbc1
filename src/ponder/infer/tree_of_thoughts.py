"""Tree of thoughts: propose next thoughts, evaluate every one, and go through the tree level by level or depth first.

Paper      Yao et al. 2023, arXiv:2305.10601, algorithms 1 and 2
Equation   bfs: S_t = top_b { s + z : s in S_{t-1}, z one of k thoughts } by value;  dfs: the deepest best first, back when it is given up
Shapes     prompt -> all answers that were met, best verdict first
Guarantee  biased: tilted towards what the evaluator likes; breadth=1 with one sampled thought is plain sampling
Cost       per level breadth x num_thoughts steps and evaluations (bfs); one proposing reply more per node with `propose`
Choose     for puzzles whose thoughts are short and whose dead ends show. Sample thoughts that are long; propose those of a line,
           since drawing twice in so small a space gives the same thought twice.
Differs    evaluation is the verifier's (value_prompt asks as the paper does); proposed thoughts are made tokens of the answer by a
           forced extension, so that log_p stays the model's own; the last of max_steps is sampled to the end of the answer
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import GREEDY, Choice, Extend, Extension, Prefix, Prompt, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.tree import Growing, Node, Steps, Tree

PROPOSE = "{question}\n\nSolution so far:\n{text}\n\nWrite {num} different possible next steps, one per line, each ready to be put after the above."
Order = Callable[[Sequence[Node], int], tuple[list[Node], list[Node]]]  # (waiting, breadth) -> (to expand now, still waiting)


def bfs(waiting: Sequence[Node], breadth: int) -> tuple[list[Node], list[Node]]:
    """The best of the level; the others are dropped."""
    return sorted(waiting, key=lambda node: node.rank, reverse=True)[:breadth], []


def dfs(waiting: Sequence[Node], breadth: int) -> tuple[list[Node], list[Node]]:
    """The deepest, the best of them first; the others wait for a dead end."""
    ranked = sorted(waiting, key=lambda node: (node.depth, node.rank), reverse=True)
    return ranked[:breadth], ranked[breadth:]


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts:
    breadth: int = 5  # nodes expanded at a time: all that a level keeps (bfs), or the deepest (dfs; the paper: 1)
    num_thoughts: int = 5  # children of an expanded node
    order: Order = bfs  # bfs or dfs
    propose: str | None = PROPOSE  # prompt that lists thoughts; None: they are sampled one by one
    num_answers: int = 5  # stops when as many are whole
    max_expansions: int = 64  # nodes expanded, at most
    steps: Steps = field(default_factory=lambda: Steps(max_steps=8))

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.breadth, self.num_thoughts, self.num_answers, self.max_expansions) < 1:
            raise BadField(f"{self}: breadth, num_thoughts, num_answers and max_expansions must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        tree = Tree(prompt)
        waiting, left = [tree.root], self.max_expansions
        while waiting and left > 0 and not tree.is_spent and sum(n.is_whole for n in tree.nodes) < self.num_answers:
            nodes, waiting = self.order(waiting, min(self.breadth, left))
            left -= len(nodes)
            waiting += self.steps.open((yield from self.thoughts(tree, nodes, rng)))
        return (yield from self.steps.concluded(tree, rng, {"num_expanded": self.max_expansions - left}))

    def thoughts(self, tree: Tree, nodes: Sequence[Node], rng: Rng) -> Growing:
        """Children of `nodes`: proposed where that gives any, else sampled."""
        can_propose = self.propose is not None and tree.prompt.form is None
        asked = [node for node in nodes if can_propose and node.depth + 1 < self.steps.max_steps]
        grown = (yield from self.proposed(tree, asked, rng)) if asked else []
        barren = [node for node in nodes if not any(child.parent is node for child in grown)]
        return grown + (yield from self.steps.grow(tree, [] if tree.is_spent else [n for n in barren for _ in range(self.num_thoughts)], rng))

    def proposed(self, tree: Tree, nodes: Sequence[Node], rng: Rng) -> Growing:
        asks = (Extend(prefix=Prefix(self.proposing(tree.prompt, n)), seed=rng.seed(*n.path, -2), sampling=self.steps.sampling) for n in nodes)
        replies = yield Turn(tuple(asks), tree.best())
        listed = [(n, line) for n, reply in zip(nodes, replies, strict=True) for line in self.lines(n, reply.prefix)]
        if not listed:
            return []
        told = yield Turn(tuple(forced(node.prefix, line) for node, line in listed), tree.best())
        known = len(tree.nodes)
        made = [as_step(answer, tree.prompt, node.prefix.text + line) for (node, line), answer in zip(listed, told, strict=True)]
        grown = [tree.add(node, node.num_asked + i, prefix) for i, ((node, _), prefix) in enumerate(zip(listed, made))]
        for node in nodes:
            node.num_asked += len(listed)
        yield from self.steps.judge(tree, tree.nodes[known:])
        return [node for node in grown if node is not None]

    def proposing(self, prompt: Prompt, node: Node) -> Prompt:
        text = (self.propose or "").format(question=prompt.question, text=node.prefix.text, num=self.num_thoughts)
        return replace(prompt, messages=(*prompt.messages[:-1], (prompt.messages[-1][0], text)), prefill="", stop=())

    def lines(self, node: Node, reply: Prefix) -> list[str]:
        """The first num_thoughts different lines of a reply, each as it goes on from the node's text; none of a reply that was cut."""
        end = self.steps.until[0] if self.steps.until else "\n"
        found = [] if reply.finish == "budget" else [line.strip() for line in reply.text.splitlines() if line.strip()]
        return [line + end for line in dict.fromkeys(found)][: self.num_thoughts]


def forced(prefix: Prefix, text: str) -> Extend:
    """Makes `text` the next tokens: the only answer that the form admits."""
    prompt = replace(prefix.prompt, form=Choice((prefix.text + text,)))
    return Extend(prefix=replace(prefix, prompt=prompt), seed=0, sampling=GREEDY, logprobs=0)


def as_step(answer: Extension, prompt: Prompt, text: str) -> Prefix:
    """The grown prefix under the prompt's own form, open again where it is `text`: the end that the form forced is taken back."""
    grown = replace(answer.prefix, prompt=prompt)
    if answer.finish != "stop" or grown.text != text or not answer.logprobs:
        return grown
    return replace(grown, tokens=grown.tokens[:-1], log_p=grown.log_p - answer.logprobs[-1].log_p, finish=None)
