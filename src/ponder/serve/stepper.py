"""The one thread that owns the process and its driver: commands go in, what happened in a step comes out in one batch."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponder.core.errors import PonderError
from ponder.run.driver import Driver, Job
from ponder.run.events import Event

log = logging.getLogger("ponder.serve")


@dataclass(frozen=True)
class Accepted:
    """A job that the driver has taken."""

    job: str
    prompt_len: int


@dataclass(frozen=True)
class Refused:
    """A job that cannot be run, and why."""

    job: str
    error: PonderError


@dataclass(frozen=True)
class Broken:
    """The driver or its store failed: all jobs that were under way are lost, those to come are welcome."""

    jobs: tuple[str, ...]
    message: str


News = Event | Accepted | Refused | Broken
Command = Callable[[Driver], Sequence[News]]


class Stepper:
    """Runs `open` and everything after it in its own thread. `tell` is called there, once a step, with what happened."""

    def __init__(self, open: Callable[[], Driver], tell: Callable[[list[News]], None]) -> None:
        self.open, self.tell = open, tell
        self.inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.driver: Driver | None = None
        self.failure: BaseException | None = None
        self.is_open = threading.Event()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Driver:
        """Raises what `open` raised."""
        self.thread.start()
        self.is_open.wait()
        if self.failure is not None:
            raise self.failure
        assert self.driver is not None
        return self.driver

    def submit(self, job: Job) -> None:
        self.inbox.put(lambda driver: _submitted(driver, job))

    def cancel(self, job_id: str) -> None:
        self.inbox.put(lambda driver: _cancelled(driver, job_id))

    def wind_up(self, job_id: str) -> None:
        self.inbox.put(lambda driver: _wound_up(driver, job_id))

    def stop(self) -> None:
        """Drops what is under way and ends the thread; waits for it."""
        self.inbox.put(None)
        self.thread.join()

    def _run(self) -> None:
        try:
            self.driver = self.open()
        except BaseException as error:  # handed to the caller of start
            self.failure = error
            return
        finally:
            self.is_open.set()
        driver = self.driver
        while True:
            news: list[News] = []
            try:
                for command in self._commands(is_idle=not (driver.active or driver.todo)):
                    if command is None:
                        driver.close()
                        return
                    news += command(driver)
                news += driver.turn()
            except Exception as error:  # a full disk, or a mistake of ours: those under way are told, the server stays
                log.exception("the engine's thread failed")
                lost = (*(running.job.id for running in driver.active), *(job.id for job in driver.todo))
                driver.drop()
                news.append(Broken(lost, f"{type(error).__name__}: {error}" if isinstance(error, PonderError) else type(error).__name__))
            if news:
                self.tell(news)

    def _commands(self, *, is_idle: bool) -> list[Command | None]:
        """All that wait; when there is nothing else to do, waits for one."""
        found = [self.inbox.get()] if is_idle else []
        while not self.inbox.empty():
            found.append(self.inbox.get())
        return found


def _cancelled(driver: Driver, job_id: str) -> Sequence[News]:
    driver.cancel(job_id)
    return ()


def _wound_up(driver: Driver, job_id: str) -> Sequence[News]:
    driver.wind_up(job_id)
    return ()


def _submitted(driver: Driver, job: Job) -> list[News]:
    try:
        driver.submit(job)
    except PonderError as error:
        return [Refused(job.id, error)]
    return [Accepted(job.id, driver.process.prompt_len(job.prompt))]
