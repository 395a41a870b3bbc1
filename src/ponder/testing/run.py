"""The smallest loop that answers a running strategy or op, so that laws need no driver."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ponder.core.asks import Answer, Ask, Judge, Judgement, Turn, spent_answer, unfit_answer
from ponder.core.budget import Cost
from ponder.core.errors import PromptTooLong
from ponder.core.roles import Process, Verifier

T = TypeVar("T")


@dataclass(frozen=True)
class Finished(Generic[T]):
    result: T
    turns: tuple[Turn, ...]  # as the strategy yielded them
    answers: tuple[tuple[Answer, ...], ...]  # one tuple per turn

    @property
    def cost(self) -> Cost:
        return sum((answer.cost for turn in self.answers for answer in turn), Cost())


def answer_all(running: Generator[Turn, Sequence[Answer], T], process: Process, *, spent_after: int | None = None, order: int = 1) -> Finished[T]:
    """Runs `running` to its end. From turn `spent_after` on every ask gets its free answer, as once a budget is spent.

    order -1 hands the asks of a turn to the process last first; answers come back in the order of the asks.
    """
    turns: list[Turn] = []
    told: list[tuple[Answer, ...]] = []
    try:
        turn = next(running)
        while True:
            is_spent = spent_after is not None and len(turns) >= spent_after
            answers = tuple(map(spent_answer, turn.asks)) if is_spent else answer_turn(turn.asks, process, order)
            turns.append(turn)
            told.append(answers)
            turn = running.send(answers)
    except StopIteration as stop:
        return Finished(stop.value, tuple(turns), tuple(told))


def answer_turn(asks: Sequence[Ask], process: Process, order: int = 1) -> tuple[Answer, ...]:
    """Answers to `asks`, in their order, all run together. One that does not fit the context is answered as the driver does."""
    tickets: dict[int, int] = {}
    answers: dict[int, Answer] = {}
    for i in range(len(asks))[::order]:
        if not isinstance(asks[i], Judge):
            try:
                tickets[process.add(asks[i])] = i
            except PromptTooLong:
                answers[i] = unfit_answer(asks[i])
    num_unfit = len(answers)
    while len(answers) < len(tickets) + num_unfit:
        answers.update((tickets[ticket], answer) for ticket, answer in process.step())
    return tuple(judged(ask, process) if isinstance(ask, Judge) else answers[i] for i, ask in enumerate(asks))


def judged(ask: Judge, process: Process) -> Judgement:
    """The verdicts of the ask's verifier, which may ask the process first."""
    verifier: Verifier = ask.verifier  # type: ignore[assignment]  # core.asks cannot name the role
    answers = answer_turn(verifier.asks(ask.prompt, ask.candidates), process)
    cost = sum((answer.cost for answer in answers), Cost())
    return Judgement(verifier.judge(ask.prompt, ask.candidates, answers), cost.as_verifier())
