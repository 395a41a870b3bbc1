"""Tokens that were likely before, after the same token, are guessed again: a tree out of a table of what last seemed likely.

Paper      Luo et al. 2024, "Turning Trash into Treasure: Token Recycling" (arXiv:2408.08696)
Equation   A[t] = the 8 likeliest tokens when t was last read, by the target, accepted or not; the tree's node of rank r below t is A[t][r]
Shapes     A int32 [rows, 1 + 8], the row of t being t mod rows; top [1 + M, 8] -> rows of A; context [T] -> a tree of at most num_tokens tokens
Guarantee  exact (a drafter changes no answer)
Cost       36 bytes a row, 1.8 MB with the default 50,000, all of it touched only where text is; the 8 largest logits of every row of the pass.
Choose     free text, where nothing repeats word for word. over="session", the paper's reference, starts warm from other requests' tokens;
           over="request" is its honest cold number, and keeps a table for each request.
Differs    the shape of the tree is not fixed by hand: it holds the likeliest places if rank r has chance s_r, likeliest first, so that any
           number of its first tokens is the best tree of that size. s_r is how often what came stood at rank r of its row, `shares` weighing
           as much as WEIGHT tokens: no draft is needed to learn it. A vocabulary of more than `rows` tokens shares rows: the later
           token owns it. The paper's table begins with zeros and drafts token 0; here a token that was never read has no guess.
"""

import functools
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ponder.core.draft import ROOT, Context, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

KEPT = 8
WEIGHT = 16.0  # tokens that `shares` count for
SHARED = -1  # instead of a request, for the table of all


@dataclass(frozen=True, kw_only=True)
class TokenRecycling:
    num_tokens: int = 16  # most tokens of a draft
    over: Literal["request", "session"] = "request"
    rows: int = 50_000
    shares: tuple[float, ...] = (0.45, 0.12, 0.07, 0.05, 0.03, 0.03, 0.02, 0.02)  # at first, chance that the token of each rank is accepted

    guarantee = Guarantee.EXACT
    needs = Needs(num_top=KEPT)

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.rows < 1:
            raise BadField(f"token_recycling num_tokens={self.num_tokens}, rows={self.rows}: both must be at least 1")
        if self.over not in ("request", "session"):
            raise BadField(f"token_recycling over={self.over!r}: must be request or session; no text has likeliest tokens")
        if len(self.shares) != KEPT or not all(0 < s < 1 for s in self.shares):
            raise BadField(f"token_recycling shares={self.shares}: must be {KEPT} chances between 0 and 1")

    @property
    def scope(self) -> Scope:
        return self.over

    def open(self, host: Host) -> "Recycling":
        return Recycling(self, min(self.rows, host.vocab_size))


class Recycling:
    """Drafting of TokenRecycling. tables: by request, or one; counts: of each, rows that were followed, and by which rank; last: newest tokens."""

    def __init__(self, settings: TokenRecycling, num_rows: int) -> None:
        self.settings, self.num_rows = settings, num_rows
        self.tables: dict[int, np.ndarray] = {}
        self.counts: dict[int, np.ndarray] = {}
        self.last: dict[int, int] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        for context in contexts:
            self.last[context.request] = context.tokens[-1]
        return [self._fill(context) for context in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        for seen in verified:
            last = self.last.get(seen.request)
            self._count(seen.request, seen.tokens if last is None else (last, *seen.tokens))
            if seen.top is not None:
                tokens = np.array((last if last is not None else 0, *seen.tree.tokens))
                first = 0 if last is not None else 1  # whose row the first is, is not known before the first token
                rows = np.concatenate([tokens[:, None], seen.top.numpy()], 1) + 1
                self._table(seen.request)[tokens[first:] % self.num_rows, : rows.shape[1]] = rows[first:]
            if seen.tokens:
                self.last[seen.request] = seen.tokens[-1]

    def forget(self, request: int) -> None:
        self.tables.pop(request, None)
        self.counts.pop(request, None)
        self.last.pop(request, None)

    def _table(self, request: int) -> np.ndarray:
        """A row is its token and its likeliest followers, each 1 more than it is: 0 stands where nothing was ever written."""
        name = request if self.settings.over == "request" else SHARED
        if name not in self.tables:
            self.tables[name] = np.zeros((self.num_rows, 1 + KEPT), dtype=np.int32)
            self.counts[name] = np.zeros(1 + KEPT)
        return self.tables[name]

    def _count(self, request: int, tokens: Sequence[int]) -> None:
        """At which rank of its row, as it stood, each token came."""
        table = self._table(request)
        counts = self.counts[request if self.settings.over == "request" else SHARED]
        for above, token in itertools.pairwise(tokens):
            row = table[above % self.num_rows].tolist()
            if row[0] == above + 1:
                counts[0] += 1
                if token + 1 in row[1:]:
                    counts[row.index(token + 1, 1)] += 1

    def _shares(self, request: int) -> tuple[float, ...]:
        """Of each rank, in hundredths, so that few plans are ever made."""
        counts = self.counts[request if self.settings.over == "request" else SHARED]
        found = (WEIGHT * np.array(self.settings.shares) + counts[1:]) / (WEIGHT + counts[0])
        return tuple(np.clip(found.round(2), 0.01, 0.99).tolist())

    def _fill(self, context: Context) -> Tree:
        """The plan's places in order, as far as the table knows what stands there."""
        table, room = self._table(context.request), min(self.settings.num_tokens, context.room)
        known, shares = dict[int, list[int]](), self._shares(context.request)
        place_of, tokens, parents, chances = {ROOT: ROOT}, [], [], []
        for at, (parent, rank, depth) in enumerate(plan(shares, self.settings.num_tokens)):
            if len(tokens) == room:
                break
            if depth > context.max_depth or parent not in place_of:
                continue
            above = context.tokens[-1] if parent == ROOT else tokens[place_of[parent]]
            if above not in known:
                row = table[above % self.num_rows].tolist()
                known[above] = [token - 1 for token in row[1:] if token] if row[0] == above + 1 else []
            if rank < len(known[above]):
                place_of[at] = len(tokens)
                tokens.append(known[above][rank])
                parents.append(place_of[parent])
                chances.append(shares[rank])
        return Tree(tuple(tokens), tuple(parents), None, tuple(chances))


@functools.lru_cache(maxsize=64)
def plan(shares: tuple[float, ...], num: int) -> tuple[tuple[int, int, int], ...]:
    """(parent, rank, depth) of the `num` places with the largest product of shares, largest first; parents are places in it."""
    heap = [(-share, rank, ROOT, 1) for rank, share in enumerate(shares)]
    heapq.heapify(heap)
    found: list[tuple[int, int, int]] = []
    while len(found) < num:
        path, rank, parent, depth = heapq.heappop(heap)
        place = len(found)
        found.append((parent, rank, depth))
        for following, share in enumerate(shares):
            heapq.heappush(heap, (path * share, following, place, depth + 1))
    return tuple(found)
