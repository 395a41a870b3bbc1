"""Tokens that were likely before, after the same tokens, are guessed again: a tree out of a table of what last seemed likely.

Paper      Luo et al. 2024, "Turning Trash into Treasure: Token Recycling" (arXiv:2408.08696)
Equation   A[t] = the 8 likeliest tokens when t was last read, by the target, accepted or not; below t in the tree are A[s, t], s the token before it,
           where that pair was read, else A[t]; token r of a row has chance shares[r]
Shapes     A int32 [rows, 1 + 8], the row of t being t mod rows; of pairs 40 bytes each; top [1 + M, 8] -> rows of A; context [T] -> a tree
Guarantee  exact (a drafter changes no answer)
Cost       1.8 MB with 50,000 rows and 0.2 MB of pairs, touched where text is; the 8 largest logits of every row of the pass; 5 us a prompt token
Choose     free text, and text that repeats itself loosely. over="session", the paper's reference, starts warm from other requests' tokens;
           over="request" is its honest cold number, and keeps a table for each request. One that was filled from the model's own text
           (train/table) is warm from the first token on.
Differs    the tree has no shape fixed by hand: it holds the likeliest paths, likeliest first. Rows of pairs, and what follows each token in the
           prompt, counted as likeliest there, are ours; pairs=0 and reads_prompt=False leave them out. A vocabulary of more than `rows` tokens
           shares rows: the later token owns it. The paper's table begins with zeros and drafts token 0; here an unread token has no guess.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ponder.accelerate.draft.followers import KEPT, Followers, Table
from ponder.core.draft import ROOT, Context, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

SHARED = -1  # instead of a request, for the table of all
UNKNOWN = -1  # a token before the first


@dataclass(frozen=True, kw_only=True)
class TokenRecycling:
    num_tokens: int = 16  # most tokens of a draft
    over: Literal["request", "session"] = "request"
    rows: int = 50_000
    pairs: int = 5_000  # rows of pairs of tokens
    reads_prompt: bool = True
    shares: tuple[float, ...] = (0.21, 0.1, 0.06, 0.05, 0.04, 0.03, 0.03, 0.02)  # chance that the token of each rank of a row is accepted
    pair_shares: tuple[float, ...] = (0.62, 0.19, 0.08, 0.05, 0.05, 0.02, 0.01, 0.01)  # the same of a pair's row
    warm: Followers | None = None  # what a table begins with (train/table); what is read later is written over it

    guarantee = Guarantee.EXACT
    needs = Needs(num_top=KEPT)

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.rows < 1 or self.pairs < 0:
            raise BadField(f"token_recycling num_tokens={self.num_tokens}, rows={self.rows}, pairs={self.pairs}: at least 1, 1 and 0")
        if self.over not in ("request", "session"):
            raise BadField(f"token_recycling over={self.over!r}: must be request or session; no text has likeliest tokens")
        for name in ("shares", "pair_shares"):
            if len(getattr(self, name)) != KEPT or not all(0 < s < 1 for s in getattr(self, name)):
                raise BadField(f"token_recycling {name}={getattr(self, name)}: must be {KEPT} chances between 0 and 1")

    @property
    def scope(self) -> Scope:
        return self.over

    def open(self, host: Host) -> "Recycling":
        """Raises BadField for a table of another vocabulary."""
        if self.warm is not None and not len(self.warm.rows) == min(self.rows, host.vocab_size) == host.vocab_size:
            raise BadField(
                f"followers of {self.warm.model_id}, {len(self.warm.rows)} rows: this model has {host.vocab_size} tokens, and rows={self.rows}; both "
                "must be as many as the table has, or fill another"
            )
        return Recycling(self, min(self.rows, host.vocab_size))


class Recycling:
    """Drafting of TokenRecycling. tables: by request, or one; ends: the last two tokens of each request."""

    def __init__(self, settings: TokenRecycling, num_rows: int) -> None:
        self.settings, self.num_rows = settings, num_rows
        self.tables: dict[int, Table] = {}
        self.ends: dict[int, tuple[int, int]] = {}
        self.has_read: set[int] = set()  # requests whose prompts were

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        for context in contexts:
            if self.settings.reads_prompt and context.request not in self.has_read:
                self._table(context.request).read(context.tokens)
                self.has_read.add(context.request)
            self.ends[context.request] = (context.tokens[-2] if len(context.tokens) > 1 else UNKNOWN, context.tokens[-1])
        return [self._grown(context) for context in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        for seen in verified:
            end = self.ends.get(seen.request)
            if seen.top is not None:
                above, tokens = end or (UNKNOWN, UNKNOWN), seen.tree.tokens
                before = [above[0], *(above[1] if parent == ROOT else tokens[parent] for parent in seen.tree.parents)]
                first = 0 if end is not None else 1  # whose row the first is, is not known before the first token
                if len(before) > first:
                    self._table(seen.request).learn(before[first:], (above[1], *tokens)[first:], seen.top.numpy()[first:])
            if seen.tokens:
                known = (*(end or (UNKNOWN, UNKNOWN)), *seen.tokens)
                self.ends[seen.request] = known[-2], known[-1]

    def forget(self, request: int) -> None:
        self.tables.pop(request, None)
        self.ends.pop(request, None)
        self.has_read.discard(request)

    def _table(self, request: int) -> Table:
        name = request if self.settings.over == "request" else SHARED
        if name not in self.tables:
            self.tables[name] = Table.of(self.num_rows, self.settings.pairs, self.settings.warm)
        return self.tables[name]

    def _grown(self, context: Context) -> Tree:
        """The paths of largest chance that the table knows."""
        table, room = self._table(context.request), min(self.settings.num_tokens, context.room)
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        heap: list[tuple[float, int, int, int, int, float]] = []  # (-reach, order, parent, depth, token, chance)

        def offer(parent: int, reach: float, depth: int, end: tuple[int, int]) -> None:
            followers, is_pair = table.after(*end)
            for token, chance in zip(followers, self.settings.pair_shares if is_pair else self.settings.shares):
                heapq.heappush(heap, (-reach * chance, len(heap) + 1000 * len(tokens), parent, depth, token, chance))

        offer(ROOT, 1.0, 1, self.ends[context.request])
        while heap and len(tokens) < room:
            reach, _, parent, depth, token, chance = heapq.heappop(heap)
            tokens.append(token)
            parents.append(parent)
            chances.append(chance)
            if depth < context.max_depth:
                offer(len(tokens) - 1, -reach, depth + 1, (context.tokens[-1] if parent == ROOT else tokens[parent], token))
        return Tree(tuple(tokens), tuple(parents), None, tuple(chances))
