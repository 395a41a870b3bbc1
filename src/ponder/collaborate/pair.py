"""Two processes as one: a way of writing together asks now the one, now the other, and exchanges text, so that tokens may differ.

Role Process, for whole answers alone: `offers` says so, and everything else is refused. Many answers are under way at once; asks of
all of them go to each process together. Costs are of both.
"""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ponder.core.asks import Answer, Ask, Extend, Extension, Judge, Prefix, Prompt, unfit_answer
from ponder.core.budget import Cost
from ponder.core.errors import BadField, NotOffered, PromptTooLong
from ponder.core.guarantee import Guarantee
from ponder.core.needs import WORDS, needs_of
from ponder.core.roles import Process, Progress

Side = Literal["base", "guide"]


@dataclass(frozen=True)
class Wish:
    """What is asked of a side, and what is written so far."""

    side: Side
    ask: Extend
    so_far: Prefix


@dataclass(frozen=True)
class Written:
    """An answer, and how many of its tokens each side said."""

    prefix: Prefix
    finish: str
    num_base: int
    num_guide: int


Talk = Generator[Wish, Extension, Written]


class Way(Protocol):
    """How two models write one answer of at most `most` tokens. Pure but for what it is answered."""

    @property
    def guarantee(self) -> Guarantee: ...

    def write(self, ask: Extend, most: int) -> Talk: ...


@dataclass(eq=False)
class Work:
    """An answer under way: who is asked what, and what it has cost."""

    talk: Talk
    wish: Wish
    ticket: int = 0  # of the side that is asked
    cost: Cost = field(default_factory=Cost)


class PairProcess:
    """num_said: tokens of finished answers by the side that said them."""

    offers = frozenset({"top_k", "min_p", "flops"})

    def __init__(self, base: Process, guide: Process, way: Way) -> None:
        self.sides: dict[Side, Process] = {"base": base, "guide": guide}
        self.way, self.context_len = way, min(base.context_len, guide.context_len)
        self.model_id = f"{base.model_id}+{guide.model_id}/{way}"
        self.works: dict[int, Work] = {}
        self.ready: list[tuple[int, Answer]] = []
        self.num_added = 0
        self.num_said: dict[Side, int] = {"base": 0, "guide": 0}

    def prompt_len(self, prompt: Prompt) -> int:
        """The longer of both readings."""
        return max(process.prompt_len(prompt) for process in self.sides.values())

    def flops(self, num_tokens: int, context_len: int) -> float:
        """As if both computed every token: the most that it may come to."""
        return sum(process.flops(num_tokens, context_len) for process in self.sides.values())

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        if isinstance(ask, Judge) or not isinstance(ask, Extend):
            raise NotOffered(f"two models together answer Extend, not {type(ask).__name__}; ask one of them")
        if missing := needs_of(ask) - self.offers:
            raise NotOffered(f"two models together offer no {', no '.join(WORDS[word] for word in sorted(missing))}; ask one of them")
        if self.prompt_len(ask.prefix.prompt) >= self.context_len:
            raise PromptTooLong(f"prompt of {self.prompt_len(ask.prefix.prompt)} tokens: the context holds {self.context_len}; shorten the prompt")
        self.num_added += 1
        limits = (ask.prefix.prompt.max_tokens, ask.max_tokens, max_tokens)
        talk = self.way.write(ask, min(limit for limit in limits if limit is not None))
        work = Work(talk, next(talk))
        self.works[self.num_added] = work
        self._send(self.num_added, work)
        return self.num_added

    def step(self) -> list[tuple[int, Answer]]:
        done, self.ready = self.ready, []
        for side, process in self.sides.items():
            tickets = {work.ticket: number for number, work in self.works.items() if work.wish.side == side}
            if tickets:
                for ticket, answer in process.step():
                    number = tickets[ticket]
                    work = self.works[number]
                    work.cost += answer.cost
                    done += self._told(number, work, answer)
        return done + self._drained()

    def progress(self) -> dict[int, Progress]:
        return {number: Progress(w.cost.prompt_tokens, w.cost.generated_tokens, 0) for number, w in self.works.items()}

    def cancel(self, ticket: int) -> Answer:
        if ticket not in self.works:
            raise BadField(f"ticket {ticket} is not under way: it was never given, or is answered or cancelled; cancel open tickets only, once")
        work = self.works.pop(ticket)
        cost = work.cost + self.sides[work.wish.side].cancel(work.ticket).cost
        return Extension(replace(work.wish.so_far, finish="budget"), "budget", replace(cost, calls=1))

    def _send(self, number: int, work: Work) -> None:
        """Puts the wish to its side; where the text has outgrown that side's context, it is told so at the next step."""
        try:
            work.ticket = self.sides[work.wish.side].add(work.wish.ask)
        except PromptTooLong:
            self.ready += self._told(number, work, unfit_answer(work.wish.ask))

    def _told(self, number: int, work: Work, answer: Answer) -> list[tuple[int, Answer]]:
        """Goes on with what was answered: a further wish, or the end."""
        assert isinstance(answer, Extension)
        try:
            work.wish = work.talk.send(answer)
        except StopIteration as stop:
            written: Written = stop.value
            self.num_said["base"] += written.num_base
            self.num_said["guide"] += written.num_guide
            del self.works[number]
            return [(number, Extension(written.prefix, written.finish, replace(work.cost, calls=1)))]
        self._send(number, work)
        return []

    def _drained(self) -> list[tuple[int, Answer]]:
        done, self.ready = self.ready, []
        return done
