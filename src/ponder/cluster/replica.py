"""A replica: a process with its model on some machine of the cluster, and a driver that answers the problems given to it.

It keeps nothing between problems: what the sample store knows of a problem comes with it, and what the model newly said goes back
while the problem is still under way. So a lost replica costs its unfinished samples only, and any replica can go on.
Verifiers and scorers run here, too, their sandboxes included.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import ponder
from ponder.core.asks import Answer, Ask, Extend, Extension, Prefix, Prompt
from ponder.core.errors import PonderError
from ponder.core.roles import Process
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
    def key(self) -> tuple[str, str]:
        return self.recipe.label, self.question.id


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be equal on all replicas, so that it does not matter where a problem is answered."""

    model_id: str
    version: str  # of ponder
    sample: tuple[tuple[int, ...], float]  # tokens and log_p of a short answer, to the last bit
    place: str = field(compare=False)  # which machine


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
    """A problem's row, and which texts turned out right."""

    row: Row
    right: dict[str, bool]


@dataclass(frozen=True)
class Ended:
    """All problems of a call are answered: what that took."""

    ledgers: dict[str, Ledger]  # by recipe


Message = Kept | Finished | Ended | Refused


class Samples(SampleStore):
    """A store without a file: the rows that came with the problems, and a way out for new ones."""

    def __init__(self, problems: Sequence[Problem], tell: Callable[[Message], None]) -> None:
        self.rows = {row[0]: row for problem in problems for row in problem.rows}
        self.tell, self.fresh, self.told = tell, list[tuple[str, Stored]](), 0.0

    def get(self, model_id: str, ask: Ask) -> Answer | None:
        row = self.rows.get(key_of(model_id, ask))
        return None if row is None else restored(ask, row[3], row[4], "of the run")

    def put(self, model_id: str, ask: Ask, answer: Answer, *, job: str = "") -> None:
        row = stored(model_id, ask, answer)
        self.rows[row[0]] = row
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
        self.opener, self.max_jobs = opener, max_jobs
        self.process: Process | None = None

    def open(self, prompt: Prompt) -> Facts | Refused:
        """Opens the model and lets it say a few tokens. Nothing is raised that is the caller's mistake."""
        try:
            self.process = self.opener()
            said = short_answer(self.process, prompt)
        except PonderError as error:
            return Refused(str(error))
        return Facts(model_id=self.process.model_id, version=ponder.__version__, sample=said, place=socket.gethostname())

    def check(self, jobs: Sequence[Job]) -> Refused | None:
        """Whether every job can be begun. A driver that is told to stop before it starts only checks."""
        assert self.process is not None
        try:
            for _ in Driver(self.process, should_stop=lambda: True).run(jobs):
                raise AssertionError("a driver that should stop began a job")
        except PonderError as error:
            return Refused(str(error))
        return None

    def run(self, problems: Sequence[Problem]) -> Iterator[Message]:
        """Answers the problems, all of unlike questions, at once; says what is new as it comes."""
        messages: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, args=(problems, messages.put), name="driver", daemon=True)
        thread.start()
        while True:
            message = messages.get()
            if isinstance(message, BaseException):
                raise message
            yield message
            if isinstance(message, Ended | Refused):
                return

    def _run(self, problems: Sequence[Problem], tell: Callable[[Message | BaseException], None]) -> None:
        assert self.process is not None
        try:
            by_id = {problem.question.id: problem for problem in problems}
            samples = Samples(problems, tell)
            driver = Driver(self.process, store=samples, max_jobs=self.max_jobs)
            for job, result in driver.run([job_of(p.recipe, p.question, p.seed) for p in problems]):
                problem = by_id[job.id]
                scores = Remembered(dict(problem.right))
                row = score(problem.recipe.label, scores.of(problem.question), result)
                samples.flush()
                tell(Finished(row, {key: right for key, right in scores.known.items() if key not in problem.right}))
            tell(Ended({problems[0].recipe.label: driver.ledger}))
        except PonderError as error:
            tell(Refused(str(error)))
        except BaseException as error:  # raised again in the actor's own call
            tell(error)


@dataclass
class Remembered:
    """Which texts are right, in memory. (Scores keeps them in a file.)"""

    known: dict[str, bool]

    def of(self, question: Question) -> Question:
        def is_right(text: str) -> bool:
            key = text_key(question.id, text)
            if key not in self.known:
                self.known[key] = question.is_right(text)
            return self.known[key]

        return Question(id=question.id, prompt=question.prompt, is_right=is_right)


def short_answer(process: Process, prompt: Prompt) -> tuple[tuple[int, ...], float]:
    """Tokens and log_p of a few drawn tokens."""
    ticket = process.add(Extend(prefix=Prefix(prompt), seed=0, max_tokens=PROBE_LEN))
    while True:
        for number, answer in process.step():
            if number == ticket:
                assert isinstance(answer, Extension)
                return answer.prefix.tokens, answer.prefix.log_p
