"""Runs a Python program that nobody has read, in a child process with limits.

Always (Linux): a fresh `python -I`; a wall-clock limit, after which the process and its group are killed; limits on CPU
time, address space, file size and open files; output thrown away; an empty scratch folder as working directory, removed
afterwards; an environment without our variables; no core dump; no new process or thread at all (RLIMIT_NPROC 0, as `nobody`
or as the user), so no fork bomb.

With isolation "namespaces" (Linux, as root or where unprivileged user namespaces are allowed) also: no network at all, not
even loopback; no file outside the scratch folder can be written (everything is mounted read-only); no process outside can be
seen or signalled; everything it started dies with it; no capabilities. With isolation "limits" (elsewhere) sockets and
signals are only refused by a Python audit hook, which code that calls C directly (ctypes) gets round.

Never: files that the user may read can be read; root's program runs as `nobody`, who can read all that root can only where
the Python library itself is root's alone. Kernel exploits, covert channels and CPU contention are out of scope. The program
shares its interpreter with the tests: one that searches the interpreter's frames can forge success, one that merely exits
early cannot.
"""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ponder.core.errors import BadField, PonderError

CHILD = Path(__file__).with_name("sandbox_child.py")
GRACE = 10.0  # seconds that the child's own watchdog gets to start and to finish
MAX_REPORT = 65_536
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. Raises BadField for limits that are not positive."""

    seconds: float = 10.0  # wall time
    memory: int = 1 << 30  # bytes of address space
    disk: int = 16 << 20  # bytes of one written file
    require_namespaces: bool = False  # refuse to run with less

    def __post_init__(self) -> None:
        if not (0 < self.seconds < 86_400 and self.memory > 0 and self.disk > 0):
            raise BadField(f"limits seconds={self.seconds}, memory={self.memory}, disk={self.disk}: each must be positive, seconds below a day")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a program ended. `passed`: it came to its end without an exception."""

    passed: bool
    detail: str  # empty when passed; else the exception, or what stopped it
    isolation: str  # "namespaces" | "limits"
    seconds: float  # wall time, start of the child included


def run_python(program: str, limits: Limits) -> Run:
    """Runs `program` as module "candidate". Never raises for what the program does.

    Raises PonderError when namespaces are required and not to be had, or when no child can be started.
    """
    start, nonce = time.monotonic(), secrets.token_hex(16)
    spec = {"program": program, "nonce": nonce, "seconds": limits.seconds, "memory": limits.memory, "disk": limits.disk,
            "require_namespaces": limits.require_namespaces}  # fmt: skip
    report = _run_child(json.dumps(spec).encode(), limits.seconds + GRACE)
    said = [json.loads(line) for line in report.splitlines() if line.startswith(b"{") and nonce.encode() in line and line.endswith(b"}")]
    facts = {key: value for line in said for key, value in line.items()}
    if "isolation" not in facts:
        raise PonderError(facts.get("refused", "the sandbox process did not start; check that this Python can run `python -I` and has free memory"))
    passed = facts.get("passed") is True and "stopped" not in facts
    detail = "" if passed else str(facts.get("stopped") or facts.get("error") or "ended without finishing")
    return Run(passed=passed, detail=detail[:300], isolation=str(facts["isolation"]), seconds=time.monotonic() - start)


def _run_child(spec: bytes, seconds: float) -> bytes:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="ponder-run-", ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-I", "-X", "utf8", str(CHILD), str(writing), scratch]
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=scratch, env=ENVIRONMENT,
                pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(reading)
            raise PonderError(f"cannot start a sandbox process: {error.strerror}") from error
        finally:
            os.close(writing)
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(spec)
                child.stdin.close()
            return _read(reading, seconds)
        finally:
            os.close(reading)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _read(pipe: int, seconds: float) -> bytes:
    """Everything until the end of the pipe, the time limit or MAX_REPORT bytes."""
    data, deadline = b"", time.monotonic() + seconds
    while len(data) < MAX_REPORT:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(pipe, 4096) if ready else b""
        if not more:
            break
        data += more
    return data
