"""A replica: a process with its model on some machine of the cluster, and a driver that answers the problems given to it.

It keeps nothing between problems: what the sample store knows of a problem comes with it, and what the model newly said goes back
while the problem is still under way. So a lost replica costs its unfinished samples only, and any replica can go on.
Verifiers and scorers run here, too, their sandboxes included.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ponder
from ponder.core.asks import Answer, Ask, Extend, Extension, Prefix, Prompt
from ponder.core.errors import PonderError
from ponder.core.roles import Process
from ponder.run import events
from ponder.run.account import Ledger
from ponder.run.compare import Row, job_of, score
from ponder.run.driver import Driver, Job
from ponder.run.question import Question, text_key
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore, Stored, key_of, restored, stored

PROBE_LEN = 8  # tokens by which replicas are compared
PAUSE = 0.2  # seconds between two messages of new samples, at least


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question under one recipe, with what is known of it already."""

    recipe: Recipe
    question: Question
    seed: int  # of the run: run.compare.job_of makes the question's of it
    rows: tuple[Stored, ...] = ()
    right: dict[str, bool] = field(default_factory=dict)  # by text_key

    @property
    def job(self) -> Job:
        return job_of(self.recipe, self.question, self.seed)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be equal on all replicas, so that it does not matter where a problem is answered."""

    model_id: str
    version: str  # of ponder
    sample: tuple[tuple[int, ...], float]  # tokens and log_p of a short answer, to the last bit
    place: str = field(compare=False)  # machine and process


@dataclass(frozen=True)
class Refused:
    """A PonderError's line. (Its class may not survive the way.)"""

    line: str


@dataclass(frozen=True)
class Kept:
    """New samples."""

    rows: tuple[tuple[str, Stored], ...]  # (question, row)


@dataclass(frozen=True)
class Finished:
    """A problem's row, which texts turned out right, and all that this replica has spent so far."""

    row: Row
    right: dict[str, bool]
    place: str
    ledger: Ledger


class Samples(SampleStore):
    """A store without a file: the rows that came with the problems, and a way out for new ones."""

    def __init__(self, tell: Callable[[Kept], None]) -> None:
        self.rows: dict[str, dict[str, Stored]] = {}  # by question and key
        self.tell, self.fresh, self.told = tell, list[tuple[str, Stored]](), 0.0

    def get(self, model_id: str, ask: Ask) -> Answer | None:
        key = key_of(model_id, ask)
        row = next((rows[key] for rows in self.rows.values() if key in rows), None)
        return None if row is None else restored(ask, row[3], row[4], "of the run")

    def put(self, model_id: str, ask: Ask, answer: Answer, *, job: str = "") -> None:
        row = stored(model_id, ask, answer)
        self.rows[job][row[0]] = row
        self.fresh.append((job, row))

    def commit(self) -> None:
        if time.monotonic() - self.told >= PAUSE:
            self.flush()

    def flush(self) -> None:
        if self.fresh:
            self.tell(Kept(tuple(self.fresh)))
        self.fresh, self.told = [], time.monotonic()


class Replica:
    """What an actor is made of. `opener` runs where the actor is: paths and names mean what they mean there."""

    def __init__(self, opener: Callable[[], Process], max_jobs: int) -> None:
        self.opener, self.max_jobs, self.place = opener, max_jobs, f"{socket.gethostname()}/{os.getpid()}"
        self.given: queue.SimpleQueue[Problem] = queue.SimpleQueue()
        self.said: queue.SimpleQueue[Kept | Finished | BaseException] = queue.SimpleQueue()
        self.process: Process | None = None

    def open(self, prompt: Prompt) -> Facts | Refused:
        """Opens the model and lets it say a few tokens. Nothing is raised that is the caller's mistake."""
        try:
            self.process = self.opener()
            sample = short_answer(self.process, prompt)
        except PonderError as error:
            return Refused(str(error))
        threading.Thread(target=self._work, args=(self.process,), name="driver", daemon=True).start()
        return Facts(model_id=self.process.model_id, version=ponder.__version__, sample=sample, place=self.place)

    def check(self, jobs: Sequence[Job]) -> Refused | None:
        """Whether every job can be begun."""
        assert self.process is not None
        driver = Driver(self.process)
        try:
            for job in jobs:
                driver.check(job)
        except PonderError as error:
            return Refused(str(error))
        return None

    def give(self, problems: Sequence[Problem]) -> None:
        """More to do. No two of the problems here at a time may be of one question."""
        for problem in problems:
            self.given.put(problem)

    def listen(self) -> Iterator[Kept | Finished]:
        """What is new, as it comes, for as long as the actor lives."""
        while True:
            message = self.said.get()
            if isinstance(message, BaseException):
                raise message
            yield message

    def _work(self, process: Process) -> None:
        """The driver's loop: problems join it whenever they come."""
        samples = Samples(self.said.put)
        driver = Driver(process, store=samples, max_jobs=self.max_jobs)
        problems: dict[str, Problem] = {}
        try:
            while True:
                while not problems or not self.given.empty():
                    problem = self.given.get()
                    problems[problem.question.id] = problem
                    samples.rows[problem.question.id] = {row[0]: row for row in problem.rows}
                    driver.submit(problem.job)
                for event in driver.turn():
                    if isinstance(event, events.Finished):
                        message = scored(problems.pop(event.job), event, self.place, driver.ledger)
                        samples.flush()
                        del samples.rows[event.job]
                        self.said.put(message)
        except BaseException as error:  # raised again where it is heard
            self.said.put(error)


def scored(problem: Problem, event: events.Finished, place: str, ledger: Ledger) -> Finished:
    """The row of a finished problem; a text that was known to be right or wrong is not scored again."""
    known = dict(problem.right)

    def is_right(text: str) -> bool:
        key = text_key(problem.question.id, text)
        if key not in known:
            known[key] = problem.question.is_right(text)
        return known[key]

    row = score(problem.recipe.label, replace(problem.question, is_right=is_right), event.result)
    return Finished(row, {key: right for key, right in known.items() if key not in problem.right}, place, replace(ledger))


def short_answer(process: Process, prompt: Prompt) -> tuple[tuple[int, ...], float]:
    """Tokens and log_p of a few drawn tokens."""
    ticket = process.add(Extend(prefix=Prefix(prompt), seed=0, max_tokens=PROBE_LEN))
    while True:
        for number, answer in process.step():
            if number == ticket:
                assert isinstance(answer, Extension)
                return answer.prefix.tokens, answer.prefix.log_p
