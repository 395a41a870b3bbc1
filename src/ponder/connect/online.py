"""One driver in a thread of its own: questions come from any thread at any time and share the engine's steps."""

import queue
import threading
from concurrent.futures import Future
from dataclasses import replace

from ponder.core.roles import Process
from ponder.run import events
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Result


class Online:
    """`ask` returns at once. The thread is a daemon: it ends with the program, or by `close`."""

    def __init__(self, process: Process, *, max_jobs: int = 64) -> None:
        self.driver, self.given = Driver(process, max_jobs=max_jobs), queue.SimpleQueue[tuple[Job, Future[Result]] | None]()
        self.waiting: dict[str, Future[Result]] = {}
        self.thread = threading.Thread(target=self._work, name="driver", daemon=True)
        self.thread.start()

    def ask(self, job: Job) -> "Future[Result]":
        """The result to come; its exception is what Driver.submit refuses, or what ended the driver. Ids may repeat."""
        answer: Future[Result] = Future()
        self.given.put((job, answer))
        return answer

    def close(self) -> None:
        """Waits for what is under way, and ends the thread."""
        self.given.put(None)
        self.thread.join()

    def _work(self) -> None:
        is_open, number = True, 0
        while is_open or self.waiting:
            while is_open and (not self.waiting or not self.given.empty()):
                given = self.given.get()
                if given is None:
                    is_open = False
                else:
                    number += 1
                    self._begin(str(number), *given)
            try:
                told = self.driver.turn()
            except BaseException as error:  # handed to all who wait: none of them will be answered
                self._fail(error)
                continue
            for event in told:
                if isinstance(event, events.Finished):
                    self.waiting.pop(event.job).set_result(event.result)

    def _begin(self, name: str, job: Job, answer: "Future[Result]") -> None:
        try:
            self.driver.submit(replace(job, id=name))
        except Exception as error:  # handed to who asked
            answer.set_exception(error)
            return
        self.waiting[name] = answer

    def _fail(self, error: BaseException) -> None:
        self.driver.close()
        for answer in self.waiting.values():
            answer.set_exception(error)
        self.waiting.clear()
