"""Trees of guesses that grow level by level, where they are likeliest. A part of the room, not a technique."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.draft import ROOT, Tree


@dataclass(frozen=True)
class Bud:
    """A guess. chance: that it is accepted if its parent is; reach: of the whole path."""

    token: int
    parent: int
    chance: float
    reach: float


@dataclass
class Plant:
    """The tree of one context. tips: places of the tokens that the next level follows, ROOT for the newest token of the context."""

    newest: int
    room: int  # most tokens that are kept
    max_depth: int
    buds: list[Bud] = field(default_factory=list)
    tips: list[int] = field(default_factory=lambda: [ROOT])
    depth: int = 0

    @property
    def tokens(self) -> list[int]:
        """Of the tips."""
        return [self.newest if tip == ROOT else self.buds[tip].token for tip in self.tips]

    def grow(self, tokens: Sequence[Sequence[int]], chances: Sequence[Sequence[float]], width: int) -> list[int]:
        """Adds what may follow each tip and makes the likeliest `width` of it tips, if something behind them could still be kept.

        Returns for every new tip the place, among the tips before, of the one that it follows.
        """
        first, before = len(self.buds), self.tips
        for tip, some, likely in zip(before, tokens, chances, strict=True):
            reach = 1.0 if tip == ROOT else self.buds[tip].reach
            self.buds += [Bud(token, tip, min(1.0, chance), reach * min(1.0, chance)) for token, chance in zip(some, likely, strict=True)]
        self.depth += 1
        least = sorted((bud.reach for bud in self.buds), reverse=True)[self.room - 1] if len(self.buds) >= self.room else 0.0
        ranked = sorted((i for i in range(first, len(self.buds)) if self.buds[i].reach > least), key=lambda i: -self.buds[i].reach)
        self.tips = ranked[:width] if self.depth < self.max_depth else []
        return [before.index(self.buds[i].parent) for i in self.tips]

    def tree(self) -> Tree:
        """The likeliest paths first; a token never comes before the one that it follows, since it is no likelier."""
        order = sorted(range(len(self.buds)), key=lambda i: -self.buds[i].reach)[: self.room]
        place = {ROOT: ROOT} | {i: at for at, i in enumerate(order)}
        kept = [self.buds[i] for i in order]
        return Tree(tuple(b.token for b in kept), tuple(place[b.parent] for b in kept), None, tuple(b.chance for b in kept))
