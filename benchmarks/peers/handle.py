"""A worker seen from outside: started, told what to do, stopped between its turns, ended when it hangs.

A worker that waits its turn is halted by SIGSTOP, so that its spinning threads cost the others nothing.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent


class WorkerFailed(Exception):
    """The worker said an error, ended, or took too long; its words are the message."""


class Worker:
    def __init__(self, engine: str, python: str | None, log: Path, env: Mapping[str, str]) -> None:
        self.engine = engine
        self.log = log.open("a", encoding="utf-8")
        self.process = subprocess.Popen(
            [python or sys.executable, "-m", "peers.serve", engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent / 'src'}", **env}, start_new_session=True,
        )  # fmt: skip
        self.replies: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put(None)

    def begin(self, timeout: float) -> None:
        """Waits until the worker's packages are imported."""
        self._reply(timeout)
        self._halt()

    def ask(self, order: Mapping[str, object], timeout: float) -> dict:
        """One turn: the worker runs until it has replied. Raises WorkerFailed; one that hangs is killed."""
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise WorkerFailed(f"{self.engine} has ended (exit {self.process.poll()}); see {self.log.name}") from error
        reply = self._reply(timeout)
        self._halt()
        return reply

    def _reply(self, timeout: float) -> dict:
        try:
            line = self.replies.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise WorkerFailed(f"no answer within {timeout:.0f} s; killed") from None
        if line is None:
            raise WorkerFailed(f"ended without an answer (exit {self.process.wait()}); see {Path(self.log.name).name}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def quit(self) -> None:
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError, ValueError, subprocess.TimeoutExpired):
            self.process.stdin.write(json.dumps({"do": "quit"}) + "\n")
            self.process.stdin.flush()
            self.process.wait(timeout=10)
        self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _halt(self) -> None:
        """Returns when the worker has really stopped, or ended."""
        self._signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it has ended and is known to have
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
