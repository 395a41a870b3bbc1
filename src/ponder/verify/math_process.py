"""Equality of two LaTeX answers by math-verify, in a worker process, so that a hard pair costs a time limit and not the run.

math-verify's own time limits are alarms, which work only in the main thread and cannot break a long C call. The worker is
started on first use and shared; it is killed and started again after a pair that took too long.
"""

import atexit
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

from ponder.core.errors import PonderError

WORKER = Path(__file__).with_name("math_worker.py")
MAX_CHARS = 600  # longer answers are compared as text only
START_SECONDS = 60.0  # import of sympy on a loaded machine


class _Worker:
    """One process and the lock around it. Belongs to the process that made it: a fork starts its own."""

    def __init__(self) -> None:
        self.lock, self.owner = threading.Lock(), os.getpid()
        self.child: subprocess.Popen[bytes] | None = None

    def ask(self, left: str, right: str, seconds: float) -> bool:
        with self.lock:
            child = self._running()
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps([left, right]).encode() + b"\n")
                child.stdin.flush()
                reply = self._line(child, seconds)
            except OSError:
                reply = b""
            if not reply:
                self.stop()
            return reply == b"1\n"

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.child is not None and self.child.poll() is None:
            return self.child
        self.stop()
        command = [sys.executable, "-I", str(WORKER)]
        child = self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self._line(child, START_SECONDS) != b"ready\n":
            self.stop()
            raise PonderError("the math-verify worker did not start; try: python -c 'import math_verify'")
        return child

    def _line(self, child: "subprocess.Popen[bytes]", seconds: float) -> bytes:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        return child.stdout.readline() if ready else b""

    def stop(self) -> None:
        child, self.child = self.child, None
        if child is None:
            return
        if os.getpid() == self.owner:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


@functools.lru_cache(maxsize=1)
def _worker(_pid: int) -> _Worker:
    worker = _Worker()
    atexit.register(worker.stop)
    return worker


@functools.lru_cache(maxsize=65536)
def equivalent(left: str, right: str, *, seconds: float) -> bool:
    """True when math-verify finds the answers equal, in either direction, within `seconds`; else False.

    Raises PonderError when math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise PonderError("comparing formulas needs math-verify; install it with: pip install 'ponder[tasks]'")
    if max(len(left), len(right)) > MAX_CHARS or not left or not right:
        return False
    return _worker(os.getpid()).ask(left, right, seconds)
