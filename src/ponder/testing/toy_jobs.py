"""Asks under way in a toy process (testing.toy): one each, or several that read each other's tokens as they are written."""

from dataclasses import dataclass, field, replace

from ponder.core.asks import Ask, Confer, Extension, Extensions, Prefix, TokenLogP
from ponder.core.beside import Writer, stretches
from ponder.core.budget import Cost


@dataclass
class Job:
    """An ask under way. Of one that is part of a Confer, `heard` are the others' tokens that its next one is drawn after."""

    ask: Ask
    prefix: Prefix
    limit: int  # most tokens it may generate
    is_capped: bool  # the limit is a reservation, not the ask's own
    num_new: int = 0  # tokens generated so far
    cost: Cost = field(default_factory=lambda: Cost(calls=1))
    row_tokens: int = 0  # computed by the last step
    logprobs: list[TokenLogP] = field(default_factory=list)
    group: int | None = None  # ticket of the Confer
    heard: tuple[int, ...] = ()


@dataclass
class Group:
    """A Confer under way. told: what came of each of its members, once it is over."""

    ask: Confer
    members: list[Job]
    writers: list[Writer]
    told: dict[int, Extension] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        return sum((job.cost for job in self.members), Cost(calls=1))

    @property
    def row_tokens(self) -> int:
        return sum(job.row_tokens for job in self.members)

    @property
    def is_done(self) -> bool:
        num_final = sum(told.prefix.is_final for told in self.told.values())
        return len(self.told) == len(self.members) or num_final >= (self.ask.enough or len(self.members))

    def due(self) -> list[int]:
        """Members that draw next: those that are behind all others."""
        lens = {i: len(job.prefix.tokens) for i, job in enumerate(self.members) if i not in self.told}
        return [i for i, num in lens.items() if num == min(lens.values())]

    def heard(self, me: int) -> tuple[int, ...]:
        time = len(self.members[me].prefix.tokens) - 1
        if time < 0:
            return ()
        met = stretches(self.ask.layout, self.writers, me, time)
        return tuple(token for writer, first, last in met if writer != me for token in self.members[writer].prefix.tokens[first:last])

    def answer(self, finish: str) -> Extensions:
        """Those that are not over end with `finish`."""
        parts = []
        for i, job in enumerate(self.members):
            prefix = job.prefix if finish == "limit" else replace(job.prefix, finish=finish)
            told = self.told.get(i) or Extension(prefix, finish, logprobs=tuple(job.logprobs))
            parts.append(replace(told, cost=Cost()))
        return Extensions(tuple(parts), self.cost)
