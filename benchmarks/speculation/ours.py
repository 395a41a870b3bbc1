"""Our engine under one setting of speculation after another: the same model, the same prompts, the same store of prefixes.

A turn answers some prompts at once. Its speed is that of the tokens after every sequence has its first one, so that no prompt is in it.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ponder.core.asks import Extend, Extension, Prefix, Prompt, Sampling
from ponder.core.draft import (
    Acceptor,
    Context,
    Controlling,
    Drafter,
    Drafting,
    Guess,
    Host,
    LengthControl,
    Needs,
    Speculation,
    Spent,
    StepCosts,
    Tree,
    Verified,
    chain,
)
from ponder.core.guarantee import Guarantee
from ponder.engine.process import LocalProcess
from ponder.engine.rounds import Rounds


@dataclass
class Tally:
    """What the rounds of a turn came to. accepted: by depth, how many drafts were that deep and how many of them were accepted so far."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A length control that also counts."""

    inner: LengthControl
    tally: Tally = field(default_factory=Tally)

    guarantee = Guarantee.EXACT

    def open(self, costs: Callable[[], StepCosts]) -> Controlling:
        return Watching(self.inner.open(costs), self.tally)


@dataclass
class Watching:
    inner: Controlling
    tally: Tally

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return self.inner.rooms(requests)

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        return self.inner.goes_on(requests, drafts)

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return self.inner.cut(requests, trees, num_rows)

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        for seen in verified:
            self.tally.rounds += 1
            self.tally.drafted += len(seen.tree)
            self.tally.accepted += len(seen.path)
        if spent is not None:
            self.tally.draft_seconds += spent.draft_seconds
        self.inner.learn(verified, spent)

    def forget(self, request: int) -> None:
        self.inner.forget(request)


@dataclass(frozen=True, kw_only=True)
class Blind:
    """A drafter that always guesses `num` tokens, the same ones: what a wider step costs, and nothing else."""

    num: int

    guarantee = Guarantee.EXACT
    scope = "request"
    needs = Needs()

    def open(self, host: Host) -> Drafting:
        return self

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        return [chain([1] * min(self.num, c.room, c.max_depth)) for c in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        pass

    def forget(self, request: int) -> None:
        pass


@dataclass(frozen=True)
class Turn:
    """seconds, cpu: of `num_after` tokens, from the moment at which every sequence has its first."""

    seconds: float
    cpu: float
    num_after: int
    num_tokens: int
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    tally: Tally


class Ours:
    """A process, and what speculates in it for the time being."""

    def __init__(self, process: LocalProcess) -> None:
        self.process = process

    def use(self, drafter: Drafter | None, acceptor: Acceptor, control: LengthControl, *, learned: Drafting | None = None) -> Tally:
        """Begins a setting: what was learned before is gone but for a copy of `learned`, stored prefixes stay."""
        watched = Watched(inner=control)
        speculation = None if drafter is None else Speculation(drafter=drafter, acceptor=acceptor, control=watched)
        process = self.process
        before = process.rounds
        process.rounds = Rounds(
            speculation, before.host, before.take, before.ahead, max_rows=before.max_rows, meter=before.meter, is_here=before.is_here
        )  # fmt: skip
        if learned is not None:
            process.rounds.drafting = copy.deepcopy(learned)
        return watched.tally

    def learned(self, drafter: Drafter, acceptor: Acceptor, control: LengthControl, prompts: Sequence[Prompt]) -> Drafting:
        """The drafter after answers to those prompts."""
        self.answer(prompts, Sampling(temperature=0.0), self.use(drafter, acceptor, control))
        return self.process.rounds.drafting

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, tally: Tally, seed: int = 0) -> Turn:
        asks = [Extend(prefix=Prefix(prompt), seed=seed + i, sampling=sampling) for i, prompt in enumerate(prompts)]
        tickets = [self.process.add(ask) for ask in asks]
        done: dict[int, Extension] = {}
        start = cpu = 0.0
        num_before = 0
        before = replace(tally)
        while len(done) < len(tickets):
            for ticket, answer in self.process.step():
                done[ticket] = answer
            if not start:
                made = {t: p.generated_tokens for t, p in self.process.progress().items()}
                counts = [made.get(t, len(done[t].prefix.tokens) if t in done else 0) for t in tickets]
                if all(counts):
                    start, cpu, num_before, before = time.perf_counter(), time.process_time(), sum(counts), replace(tally)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        found = [done[t].prefix for t in tickets]
        num = sum(len(p.tokens) for p in found)
        spent = Tally(
            tally.rounds - before.rounds, tally.drafted - before.drafted, tally.accepted - before.accepted, tally.draft_seconds - before.draft_seconds
        )
        return Turn(seconds, cpu, num - num_before, num, tuple(p.tokens for p in found), tuple(p.text for p in found), spent)

    def cost_of_width(self, prompt: Prompt, widths: Sequence[int], acceptor: Acceptor, control: LengthControl) -> dict[int, float]:
        """CPU seconds of a step of one sequence, by its number of rows: row 1 is the token that plain decoding computes."""
        found = {}
        for width in widths:
            tally = self.use(Blind(num=width - 1) if width > 1 else None, acceptor, control)
            turn = self.answer([prompt], Sampling(temperature=0.0), tally)
            found[width] = turn.cpu / max(1, tally.rounds or turn.num_after)
        return found
