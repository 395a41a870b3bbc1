"""Which keys each query of a sequence meets, and where it stands when it meets them: the seam of the attention plans (accelerate/attend).

A plan is asked once per layer for the new queries of one sequence, when their keys are in place, and answers with pieces: lists of
keys, each for some of the rows. The engine meets every piece, as (out, log of the summed exponentiated scores), and merges a
row's pieces exactly. A key is met at its own place or by a query that was turned; keys never move. What a plan does not list
costs nothing. Causality is the engine's: a query sees no key behind its own place, whatever a plan says.

Shapes: N new queries at places start..stop, H query heads, K key heads, E head width, U lists of a piece.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

KEY_BLOCK = 16  # keys, aligned to places, that are listed together
QUERY_BLOCK = 64  # queries, aligned to places, that share a list


@dataclass(frozen=True)
class Memory:
    """What a plan has kept of one layer, by names of its own; empty at first, and it may be lost at any time.

    prompt: a function of the keys of the prompt's whole pages; sequences that share these share it. own: of the answer's tokens
    before the view, since the last multiple of the plan's `answer_segment`, and of the prompt's.
    """

    prompt: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for part in (self.prompt, self.own) for x in part.values())


@dataclass(frozen=True, kw_only=True)
class View:
    """The new queries of a sequence in one layer, places start..stop, and all keys up to stop. All are of the prompt, or none is."""

    layer: int
    num_layers: int
    start: int
    stop: int
    num_kv_heads: int
    is_rotary: bool  # whether the layer rotates queries and keys
    q_NHE: Tensor  # rotated to their places
    keys: Callable[[int, int], Tensor]  # (first, last) place -> [last - first, K, E], rotated to their places; a copy
    num_prompt: int
    turned: Callable[[Tensor, Tensor], Tensor]  # (rows [R], positions [R]) -> those queries [R, H, E], turned so far forward
    memory: Memory = field(default_factory=Memory)  # empty while a prompt is read
    # (place) -> float32 [K, place + 1]: the weights that the query at `place` gives each key up to itself, of a key head's query heads together
    weights: Callable[[int], Tensor] | None = None

    @property
    def num_heads(self) -> int:
        return int(self.q_NHE.shape[1])

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_pages(self) -> int:
        """Blocks of KEY_BLOCK keys that there are, the last perhaps not full."""
        return -(-self.stop // KEY_BLOCK)

    @property
    def blocks(self) -> range:
        """Numbers of the blocks of QUERY_BLOCK places that the queries are in."""
        return range(self.start // QUERY_BLOCK, -(-self.stop // QUERY_BLOCK))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Lists of keys and the rows that meet them. A row is n * H + head of query n; it stands in one list of a piece at most."""

    heads: np.ndarray  # [U] key head of each list
    rows: np.ndarray  # the rows of all lists, one list after the other ...
    row_ends: np.ndarray  # [U] ... and where each list's end
    keys: np.ndarray  # what each list holds, ascending ...
    key_ends: np.ndarray  # [U]
    are_pages: bool = True  # keys are numbers of blocks of KEY_BLOCK, else places of single keys, all before the rows that meet them
    turn: Tensor | None = None  # int64 [N]: positions that each query is turned forward first; None: it stays
    log_weight: float = 0.0  # of every key: a sample stands for more keys than it has


class AttentionPlan(Protocol):
    """Settings in a frozen object, no state. Pieces are a function of the arguments alone: the same keys and queries, the same lists.

    What a row meets may depend on its own query, on keys before it and, where `segment` (`answer_segment`) is more than 1, on the
    queries between the beginning of its aligned segment and itself; never on later tokens. So no answer depends on chunks or
    neighbours. What a plan puts into a view's memory saves work and changes no list: answers are the same if it is lost where a
    segment begins.
    """

    @property
    def name(self) -> str: ...

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def segment(self) -> int:
        """Prompts are computed from multiples of it on and cut only there, so that a view begins a segment. 1: cuts are anywhere."""
        ...

    @property
    def answer_segment(self) -> int:
        """Answers are taken up only at the prompt's end and whole multiples of it behind. 1: anywhere."""
        ...

    @property
    def is_for_prompts(self) -> bool:
        """Whether prompt tokens meet keys by it; else they meet all."""
        ...

    @property
    def is_for_answers(self) -> bool:
        """Whether completion tokens meet keys by it; else they meet all."""
        ...

    def reach(self, context_len: int) -> int:
        """Most tokens of a sequence with a model that was made for context_len."""
        ...

    def pieces(self, view: View) -> Sequence[Piece]: ...


def listed(view: View, pages_JBP: np.ndarray, turn: Tensor | None = None) -> Piece:
    """Pages [J, B, P] that each block of queries meets: by query head (J = H), by key head (J = K) or by all alike (J = 1).

    Pages behind a block's last query are left out. Raises BadField for another shape.
    """
    num_lists = pages_JBP.shape[0]
    if num_lists not in (1, view.num_kv_heads, view.num_heads) or pages_JBP.shape[1:] != (len(view.blocks), view.num_pages):
        raise BadField(f"pages {pages_JBP.shape}: must be [1, {view.num_kv_heads} or {view.num_heads}, {len(view.blocks)}, {view.num_pages}]")
    if num_lists == 1:
        pages_JBP = np.broadcast_to(pages_JBP, (view.num_kv_heads, *pages_JBP.shape[1:]))
    each = view.num_heads // len(pages_JBP)
    heads, rows, keys = [], [], []
    for at, block in enumerate(view.blocks):
        first, last = max(view.start, block * QUERY_BLOCK), min(view.stop, (block + 1) * QUERY_BLOCK)
        queries = np.arange(first - view.start, last - view.start)[:, None] * view.num_heads
        for j, found in enumerate(pages_JBP[:, at, : -(-last // KEY_BLOCK)]):
            heads.append(j * each // view.group)
            rows.append((queries + np.arange(j * each, (j + 1) * each)).ravel())
            keys.append(np.flatnonzero(found))
    return _piece(heads, rows, keys, turn=turn)


def everything(view: View) -> Piece:
    """All keys: what attention is without a plan."""
    return listed(view, np.ones((1, len(view.blocks), view.num_pages), bool))


def gathered(heads: Sequence[int], rows: Sequence[np.ndarray], keys: Sequence[np.ndarray], log_weight: float = 0.0) -> Piece:
    """Single keys, by their places, that lists of rows meet: all of them before all of the rows."""
    return _piece(heads, rows, keys, are_pages=False, log_weight=log_weight)


def of_answer(view: View, keys: Sequence[np.ndarray], *, are_pages: bool) -> Piece:
    """Lists of the first query by key head, then of the second, and so on: numbers of pages, or places of single keys up to its own, ascending."""
    if len(keys) == 1:
        return of_answer_flat(view, keys[0], np.array([len(keys[0])], np.int32), are_pages=are_pages)
    joined = np.concatenate(keys, dtype=np.int32, casting="same_kind")
    return of_answer_flat(view, joined, np.fromiter(itertools.accumulate(map(len, keys)), np.int32, len(keys)), are_pages=are_pages)


def of_answer_flat(view: View, keys: np.ndarray, key_ends: np.ndarray, *, are_pages: bool) -> Piece:
    """The same, int32 and one list after the other, with where each ends."""
    heads, rows, row_ends = _rows_of_answer(len(key_ends), view.num_kv_heads, view.group)
    return Piece(heads=heads, rows=rows, row_ends=row_ends, keys=keys, key_ends=key_ends, are_pages=are_pages)


def of_answer_even(view: View, keys_UN: np.ndarray, *, are_pages: bool) -> Piece:
    """The same, int32 lists of N keys each."""
    num, size = keys_UN.shape
    return of_answer_flat(view, keys_UN.ravel(), np.arange(size, num * size + 1, size, dtype=np.int32), are_pages=are_pages)


@functools.lru_cache(64)
def _rows_of_answer(num: int, num_kv_heads: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Key heads, rows and ends of rows of `num` lists, one for each query and key head: they tell nothing of keys. Nobody may write there."""
    heads = np.arange(num, dtype=np.int32) % num_kv_heads
    return heads, np.arange(num * group, dtype=np.int32), (np.arange(num, dtype=np.int32) + 1) * np.int32(group)


def _piece(
    heads: Sequence[int], rows: Sequence[np.ndarray], keys: Sequence[np.ndarray], *, turn: Tensor | None = None, are_pages: bool = True,
    log_weight: float = 0.0,
) -> Piece:  # fmt: skip
    kept = [i for i, found in enumerate(keys) if len(found) and len(rows[i])]
    join = [np.concatenate([x[i] for i in kept] or [np.zeros(0, int)]).astype(np.int32) for x in (rows, keys)]
    ends = [np.cumsum([len(x[i]) for i in kept], dtype=np.int32) for x in (rows, keys)]
    return Piece(
        heads=np.array([heads[i] for i in kept], np.int32), rows=join[0], row_ends=ends[0], keys=join[1], key_ends=ends[1],
        are_pages=are_pages, turn=turn, log_weight=log_weight,
    )  # fmt: skip
