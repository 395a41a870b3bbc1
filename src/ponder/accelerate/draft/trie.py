"""Everything that followed the last tokens before, as a tree with branches: likeliest places first.

Paper      Zhao et al. 2024, "Lookahead: An Inference Acceleration Framework" (arXiv:2312.12728)
Equation   of the stretches of 1 to `suffix` tokens that the context ends with, the `room` continuations with the largest product of
           chances (draft/stretches); counts of the request itself weigh 1, those of other texts `weight`
Shapes     context [T] -> a tree of at most `num_tokens` tokens, `length` deep
Guarantee  exact (a drafter changes no answer)
Cost       up to suffix + length dictionary entries for every token read, some 6 us; a draft some 50 us. `max_nodes` bounds the memory
           of each count, about 200 bytes a node.
Choose     text that repeats with variations (retrieval, code, templates), where one copy is often the wrong one. Cold, it knows its own
           request alone; over="session" learns from all answers of a process, over="corpus" from given texts: say which when you compare.
Differs    the paper ranks branches by how often they were seen, input and output mixed; here by an estimate of their probability, in which
           longer matches count more, so that a branch is drafted only as far as it pays. Counts of a request are dropped with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ponder.accelerate.draft.stretches import Counts, Weighted, likeliest
from ponder.core.draft import Context, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Trie:
    suffix: int = 4  # longest stretch that a draft continues
    length: int = 8  # longest path of a draft
    num_tokens: int = 16  # most tokens of a draft
    over: Literal["request", "session", "corpus"] = "request"
    corpus: tuple[tuple[int, ...], ...] = ()  # token ids, read when the drafter is opened
    weight: float = 0.1  # of what others said, against what the request itself holds
    max_nodes: int = 1 << 16  # of one count

    guarantee = Guarantee.EXACT
    needs = Needs()

    def __post_init__(self) -> None:
        if min(self.suffix, self.length, self.num_tokens) < 1 or self.max_nodes < self.suffix + self.length:
            raise BadField(f"{self}: suffix, length, num_tokens at least 1 and max_nodes at least suffix + length, so that one branch fits")
        if bool(self.corpus) != (self.over == "corpus"):
            raise BadField(f"trie over={self.over!r} with a corpus of {len(self.corpus)} texts: give texts with over='corpus', and only then")
        if not self.weight > 0:
            raise BadField(f"trie weight={self.weight}: must be above 0")

    @property
    def scope(self) -> Scope:
        return self.over

    def open(self, host: Host) -> "Branching":
        return Branching(self)


class Branching:
    """Drafting of Trie. own: counts and number of tokens read, by request; others: what is shared; tails: last tokens said, by request."""

    def __init__(self, settings: Trie) -> None:
        self.settings = settings
        self.own: dict[int, tuple[Counts, int]] = {}
        self.tails: dict[int, list[int]] = {}
        self.others = self._counts()
        for text in settings.corpus:
            self.others.read(text, 0)

    def _counts(self) -> Counts:
        return Counts(self.settings.suffix + self.settings.length, self.settings.max_nodes)

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        return [self._branch(context) for context in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        if self.settings.over != "session":
            return
        for said in verified:
            tail = self.tails.get(said.request, [])
            grown = [*tail, *said.tokens]
            self.others.read(grown, len(tail))
            self.tails[said.request] = grown[-self.others.depth :]

    def forget(self, request: int) -> None:
        self.own.pop(request, None)
        self.tails.pop(request, None)

    def _branch(self, context: Context) -> Tree:
        settings, tokens = self.settings, context.tokens
        counts, num_read = self.own.get(context.request) or (self._counts(), 0)
        counts.read(tokens, num_read)
        self.own[context.request] = counts, len(tokens)
        starts: list[tuple[int, Weighted]] = []
        for num in range(min(settings.suffix, len(tokens)), 0, -1):
            found = [(1.0, counts.find(tokens[-num:])), (settings.weight, self.others.find(tokens[-num:]))]
            starts.append((num, [(weight, node) for weight, node in found if node is not None]))
        return likeliest(starts, min(settings.num_tokens, context.room), min(settings.length, context.max_depth))
