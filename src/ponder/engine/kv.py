"""The store of computed prefixes: a token-level radix tree over shared pages.

A node is a run of tokens and references to the pages that overlap it; its first page holds its parent's last tokens too, so the
pages of a prefix are those of the deepest node that overlaps each. Storing what a sequence computed, and forking from what is
stored, copies no key: both only share pages (engine.pages copies a page when somebody writes behind a shared end). When pages
run out, idle leaves go, least recently used first.

Keys are sequences of ints that name a computation, not only a token: a prompt's token is its id t, a completion's is ~t, because
the two may be computed by different kernel calls (engine.attend) and must not be taken for one another.

Shapes: L layers, K key heads, D model width.
"""

import bisect
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ponder.engine.pages import PAGE, Ids, Pool, Sequence


@dataclass(eq=False)
class Node:
    """Tokens start..start + len(tokens) of the prefixes through it. `hidden`: final hidden row [D] of the last, where asked for."""

    tokens: tuple[int, ...]
    start: int
    pages: Ids  # int32 [L, K, n]: the pages that overlap the run, each with a reference
    parent: "Node | None"
    children: dict[int, "Node"] = field(default_factory=dict)
    num_pins: int = 0
    hidden: Tensor | None = None
    paid: set[int] = field(default_factory=set)  # tokens generated after this node that nobody has computed yet

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    @property
    def is_idle(self) -> bool:
        """May be evicted: nothing hangs on it."""
        return not self.children and not self.num_pins and self.parent is not None


@dataclass(frozen=True)
class Found:
    """The longest stored beginning of a key: `num_tokens` of it, the last of which lies in `node`."""

    node: Node
    num_tokens: int

    @property
    def is_node_end(self) -> bool:
        """The match ends where the node ends, so its hidden row belongs to the match."""
        return self.num_tokens == self.node.stop


def common_len(a: Seq[int], b: Seq[int]) -> int:
    """Length of the longest common beginning of two sequences of one type."""
    longest = min(len(a), len(b))
    if a[:longest] == b[:longest]:
        return longest
    return bisect.bisect_left(range(longest), True, key=lambda i: a[: i + 1] != b[: i + 1])


class KVStore:
    """Prefixes in a pool's pages. What does not fit is not stored, and nothing fails."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.root = Node((), 0, np.zeros((pool.num_layers, pool.num_kv_heads, 0), np.int32), None)
        self.idle: OrderedDict[Node, None] = OrderedDict()  # leaves, least recently used first

    def find(self, key: tuple[int, ...]) -> Found:
        """The longest stored beginning of `key`. Marks it as used."""
        node, at = self.root, 0
        while at < len(key) and (child := node.children.get(key[at])) is not None:
            same = common_len(child.tokens, key[at : at + len(child.tokens)])
            node, at = child, at + same
            if same < len(child.tokens):
                break
        self._touch(node)
        return Found(node, at)

    def pages(self, found: Found) -> Ids:
        """int32 [L, K, n]: the pages of a match."""
        num = -(-found.num_tokens // PAGE)
        table = np.empty((self.pool.num_layers, self.pool.num_kv_heads, num), np.int32)
        node: Node | None = found.node
        while node is not None and num:
            first = node.start // PAGE
            if first < num:
                table[:, :, first:num] = node.pages[:, :, : num - first]
                num = first
            node = node.parent
        return table

    def put(self, key: tuple[int, ...], sequence: Sequence, hidden: Tensor | None = None) -> Node:
        """Shares what is missing of `key` with the sequence that computed it, and returns its node.

        hidden: [D] final hidden row of the last token, kept with the node.
        """
        found = self.find(key)
        node = found.node if found.is_node_end else self._split(found)
        if found.num_tokens < len(key):
            pages = sequence.table[:, :, found.num_tokens // PAGE : -(-len(key) // PAGE)].copy()
            self.pool.share(pages)
            parent, node = node, Node(key[found.num_tokens :], found.num_tokens, pages, node)
            parent.children[node.tokens[0]] = node
            self._touch(parent)
            self._touch(node)
        if hidden is not None:
            node.hidden = hidden
        return node

    def pin(self, node: Node) -> None:
        """Keeps `node` and all above it from eviction until `unpin`."""
        node.num_pins += 1
        self.idle.pop(node, None)

    def unpin(self, node: Node) -> None:
        node.num_pins -= 1
        self._touch(node)

    def evict(self) -> bool:
        """Drops the leaf that was used longest ago; False when there is none. Pages that others refer to stay theirs."""
        node = next(iter(self.idle), None)
        if node is None or node.parent is None:
            return False
        del self.idle[node]
        del node.parent.children[node.tokens[0]]
        self.pool.drop(node.pages)
        if node.parent.is_idle:
            self.idle[node.parent] = None
            self.idle.move_to_end(node.parent, last=False)
        return True

    def _touch(self, node: Node) -> None:
        self.idle.pop(node, None)
        if node.is_idle:
            self.idle[node] = None

    def _split(self, found: Found) -> Node:
        """Cuts the node of a match where the match ends; returns the new upper part. The lower part stays the same object."""
        lower, cut = found.node, found.num_tokens
        assert lower.parent is not None
        first = lower.start // PAGE
        upper = Node(lower.tokens[: cut - lower.start], lower.start, lower.pages[:, :, : -(-cut // PAGE) - first], lower.parent)
        upper.children[lower.tokens[cut - lower.start]] = lower
        lower.parent.children[lower.tokens[0]] = upper
        lower.tokens, lower.pages = lower.tokens[cut - lower.start :], lower.pages[:, :, cut // PAGE - first :]
        if cut % PAGE:
            self.pool.share(upper.pages[:, :, -1])
        lower.start, lower.parent = cut, upper
        return upper
