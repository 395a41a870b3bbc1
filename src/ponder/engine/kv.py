"""The store of computed keys and values: token-level radix tree over one growing table of slots.

A node is a run of tokens and the slots that hold their keys and values; two prefixes share the nodes of what they have in
common, so a fork copies nothing. Idle leaves go least recently used first when the byte limit is near. Rows that are being
computed hold their own copy (engine.rows), so eviction can cost time but never an answer.

Keys are sequences of ints that name a computation, not only a token: a prompt's token is its id t, a completion's is ~t,
because the two are computed by different kernels (engine.attend) and must not be taken for one another.

Shapes: L layers, S slots, N tokens, K key heads, E head width, D model width; 2 is (keys, values).
"""

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

START_SLOTS = 256


@dataclass(eq=False)
class Node:
    """A run of tokens. `hidden` is the final hidden row [D] of its last token, where that was asked for."""

    tokens: tuple[int, ...]
    slots: Tensor  # int64 [len(tokens)]
    parent: "Node | None"
    children: dict[int, "Node"] = field(default_factory=dict)
    num_pins: int = 0
    hidden: Tensor | None = None
    paid: set[int] = field(default_factory=set)  # tokens generated after this node that nobody has computed yet

    @property
    def is_idle(self) -> bool:
        """May be evicted: nothing hangs on it."""
        return not self.children and not self.num_pins and self.parent is not None


@dataclass(frozen=True)
class Found:
    """The longest stored beginning of a key: `num_tokens` of it, the last of which lies in `node`."""

    node: Node
    num_tokens: int
    is_node_end: bool  # the match ends where the node ends, so its hidden row belongs to the match


def common_len(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning of two sequences of one type."""
    longest = min(len(a), len(b))
    if a[:longest] == b[:longest]:
        return longest
    return bisect.bisect_left(range(longest), True, key=lambda i: a[: i + 1] != b[: i + 1])


class KVStore:
    """Keys and values by prefix. shape: (L, K, E). `max_bytes` bounds the table; what does not fit is not stored, and nothing fails."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, max_bytes: int) -> None:
        num_layers, num_kv_heads, head_dim = shape
        self.table = torch.zeros(num_layers, 2, 0, num_kv_heads, head_dim, dtype=dtype)
        self.slot_nbytes = num_layers * 2 * num_kv_heads * head_dim * dtype.itemsize
        self.max_slots = max_bytes // self.slot_nbytes
        self.free: list[int] = []
        self.root = Node((), torch.zeros(0, dtype=torch.int64), None)
        self.idle: OrderedDict[Node, None] = OrderedDict()  # leaves, least recently used first

    @property
    def nbytes(self) -> int:
        """Bytes of the table as it is now; at most max_bytes."""
        return self.table.nbytes

    @property
    def num_used(self) -> int:
        """Slots that hold a token."""
        return self.table.shape[2] - len(self.free)

    def find(self, key: tuple[int, ...]) -> Found:
        """The longest stored beginning of `key`. Marks it as used."""
        node, at = self.root, 0
        while at < len(key) and (child := node.children.get(key[at])) is not None:
            same = common_len(child.tokens, key[at : at + len(child.tokens)])
            node, at = child, at + same
            if same < len(child.tokens):
                break
        self._touch(node)
        return Found(node, at, at == self._end(node))

    def read(self, found: Found) -> Tensor:
        """Keys and values of a match, [L, 2, N, K, E]: a copy."""
        runs, node = [], found.node
        while node.parent is not None:
            runs.append(node.slots)
            node = node.parent
        slots = torch.cat(runs[::-1]) if runs else self.root.slots
        return self.table.index_select(2, slots[: found.num_tokens])

    def put(self, key: tuple[int, ...], kv: Tensor, hidden: Tensor | None = None) -> Node | None:
        """Stores what is missing of `key` from its keys and values kv [L, 2, len(key), K, E], and returns its node.

        hidden: [D] final hidden row of the last token, kept with the node. None when there is no room, even after
        eviction: then nothing was stored.
        """
        found = self.find(key)
        node = found.node if found.is_node_end else self._split(found)
        if found.num_tokens < len(key):
            slots = self._take(len(key) - found.num_tokens, node)
            if slots is None:
                return None
            self.table.index_copy_(2, slots, kv[:, :, found.num_tokens :])
            node = self._attach(node, key[found.num_tokens :], slots)
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

    def _end(self, node: Node) -> int:
        length = 0
        while node.parent is not None:
            length, node = length + len(node.tokens), node.parent
        return length

    def _touch(self, node: Node) -> None:
        self.idle.pop(node, None)
        if node.is_idle:
            self.idle[node] = None

    def _split(self, found: Found) -> Node:
        """Cuts the node of a match where the match ends; returns the new upper part. The lower part stays the same object."""
        lower = found.node
        assert lower.parent is not None
        cut = len(lower.tokens) - (self._end(lower) - found.num_tokens)
        upper = Node(lower.tokens[:cut], lower.slots[:cut], lower.parent, {lower.tokens[cut]: lower})
        lower.parent.children[lower.tokens[0]] = upper
        lower.tokens, lower.slots, lower.parent = lower.tokens[cut:], lower.slots[cut:], upper
        return upper

    def _attach(self, parent: Node, tokens: tuple[int, ...], slots: Tensor) -> Node:
        node = Node(tokens, slots, parent)
        parent.children[tokens[0]] = node
        self._touch(parent)
        self._touch(node)
        return node

    def _take(self, num: int, keep: Node) -> Tensor | None:
        """Slots for `num` tokens, by growing the table or evicting idle leaves, but never `keep`."""
        self.pin(keep)
        while len(self.free) < num and (self._grow(num) or self._evict()):
            pass
        self.unpin(keep)
        if len(self.free) < num:
            return None
        taken = self.free[-num:]
        del self.free[-num:]
        return torch.tensor(taken)

    def _grow(self, num: int) -> bool:
        size = self.table.shape[2]
        target = min(self.max_slots, max(START_SLOTS, 2 * size, size + num))
        if target <= size:
            return False
        more = self.table.new_zeros(*self.table.shape[:2], target - size, *self.table.shape[3:])
        self.table = torch.cat([self.table, more], 2)
        self.free.extend(range(size, target))
        return True

    def _evict(self) -> bool:
        """Drops the leaf that was used longest ago; False when there is none."""
        node = next(iter(self.idle), None)
        if node is None or node.parent is None:
            return False
        del self.idle[node]
        del node.parent.children[node.tokens[0]]
        self.free.extend(node.slots.tolist())
        if node.parent.is_idle:
            self.idle[node.parent] = None
            self.idle.move_to_end(node.parent, last=False)
        return True
