"""How often every short stretch of tokens was seen, as a tree: what continues the last tokens of a text, and how likely.

Equation   chance of x after a stretch s of m tokens (m grows along a draft): c(s x) / (sum_y c(s y) + 2 m^-1.5), c weighted over all
           counts; what is missing to 1 goes to the next shorter stretch. A draft's path has the product of its chances.

2 m^-1.5 is what was never seen before comes to: fitted to how often drafts were accepted in answers of SmolLM2-135M, six kinds of text.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.draft import ROOT, Tree

BRANCHES = 8  # most continuations of one place that are looked at


@dataclass(slots=True, eq=False)
class Node:
    """A stretch: how often it was seen, and the stretches that are longer by a token."""

    count: int = 0
    next: dict[int, "Node"] = field(default_factory=dict)


class Counts:
    """Counts of all stretches of 1 to `depth` tokens in at most `max_nodes` nodes: beyond, counts are halved and zeros go."""

    def __init__(self, depth: int, max_nodes: int) -> None:
        self.depth, self.max_nodes = depth, max_nodes
        self.root, self.num_nodes = Node(), 0

    def read(self, tokens: Sequence[int], start: int) -> None:
        """Counts the stretches that end at start or later."""
        ends = self._ends(tokens, start)
        for at in range(start, len(tokens)):
            ends = self._grow(ends, tokens[at])
            if self.num_nodes > self.max_nodes:
                while self.num_nodes > self.max_nodes:
                    self._halve()
                ends = self._ends(tokens, at + 1)

    def find(self, stretch: Sequence[int]) -> Node | None:
        node: Node | None = self.root
        for token in stretch:
            node = node.next.get(token)
            if node is None:
                return None
        return node

    def _ends(self, tokens: Sequence[int], stop: int) -> list[Node]:
        """Nodes of the stretches that end before `stop`, shortest first. Where one is missing so are all longer ones."""
        found = []
        for num in range(1, min(self.depth, stop + 1)):
            node = self.find(tokens[stop - num : stop])
            if node is None:
                break
            found.append(node)
        return found

    def _grow(self, ends: Sequence[Node], token: int) -> list[Node]:
        grown = []
        for node in (self.root, *ends[: self.depth - 1]):
            child = node.next.get(token)
            if child is None:
                child = node.next[token] = Node()
                self.num_nodes += 1
            child.count += 1
            grown.append(child)
        return grown

    def _halve(self) -> None:
        left, self.num_nodes = [self.root], 0
        while left:
            node = left.pop()
            for child in node.next.values():
                child.count //= 2
            node.next = {token: child for token, child in node.next.items() if child.count}
            self.num_nodes += len(node.next)
            left += node.next.values()


def unseen(length: int) -> float:
    """What a continuation that was never seen counts, after a stretch of that length."""
    return 2 * length**-1.5


Weighted = Sequence[tuple[float, Node]]  # the same stretch in several counts


def continuations(nodes: Weighted) -> tuple[list[tuple[float, int]], float]:
    """(weight, token) of the likeliest continuations, best first, and the weight of all; ties in order of the token."""
    found: dict[int, float] = {}
    for weight, node in nodes:
        for token, child in node.next.items():
            found[token] = found.get(token, 0.0) + weight * child.count
    best = heapq.nsmallest(BRANCHES, ((-w, token) for token, w in found.items()))
    return [(-w, token) for w, token in best], sum(found.values())


def likeliest(starts: Sequence[tuple[int, Weighted]], room: int, max_depth: int) -> Tree:
    """The `room` likeliest places of the tree of continuations, likeliest first. starts: (length, nodes) of the stretches that the
    context ends with, longest first; a shorter one adds what the longer ones do not begin with."""
    heap: list[tuple[float, int, int, int, float, int, Weighted]] = []  # -path's probability, serial, parent, token, chance, length, nodes
    begun: set[int] = set()
    left, serial = 1.0, 0
    for length, nodes in starts:
        found, total = continuations(nodes)
        for weight, token in found:
            if token not in begun:
                begun.add(token)
                chance = left * weight / (total + unseen(length))
                heap.append((-chance, serial, ROOT, token, chance, length + 1, _below(nodes, token)))
                serial += 1
        left *= unseen(length) / (total + unseen(length))
    heapq.heapify(heap)
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    depths: list[int] = []
    while heap and len(tokens) < room:
        path, _, parent, token, chance, length, nodes = heapq.heappop(heap)
        place = len(tokens)
        tokens.append(token)
        parents.append(parent)
        chances.append(chance)
        depths.append(1 if parent == ROOT else depths[parent] + 1)
        if depths[place] < max_depth:
            found, total = continuations(nodes)
            for weight, following in found:
                chance = weight / (total + unseen(length))
                heapq.heappush(heap, (path * chance, serial, place, following, chance, length + 1, _below(nodes, following)))
                serial += 1
    return Tree(tuple(tokens), tuple(parents), None, tuple(chances))


def _below(nodes: Weighted, token: int) -> Weighted:
    return [(weight, node.next[token]) for weight, node in nodes if token in node.next]
