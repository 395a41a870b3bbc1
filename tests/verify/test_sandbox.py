"""The sandbox: what a program may do passes, every escape that we know is stopped, and nothing is left behind."""

import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ponder.core.errors import BadField, PonderError
from ponder.verify import sandbox
from ponder.verify.sandbox import Limits, run_python

QUICK = Limits(seconds=3.0, memory=512 << 20)
GOOD = {
    "nothing": "",
    "library": "import math, re, collections, itertools, heapq, datetime, typing, random\nassert math.gcd(4, 6) == 2",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1).x == 1",
    "scratch": "open('x', 'w').write('a')\nassert open('x').read() == 'a'",
    "much output": "print('x' * 10_000_000)",
    "no main": "if __name__ == '__main__':\n    raise SystemExit",
    "recursion": "def f(n):\n    return n and f(n - 1)\nassert f(500) == 0",
}
BAD = {  # program -> what the detail must tell
    "wrong": ("assert 1 + 1 == 3", "AssertionError"),
    "syntax": ("def f(:", "SyntaxError"),
    "loop": ("while True: pass", "time limit"),
    "deaf loop": ("import signal\nfor s in (15, 2, 1): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "time limit"),
    "sleep": ("import time\ntime.sleep(100)", "time limit"),
    "memory": ("x = bytearray(2 << 30)", "MemoryError"),
    "memory in steps": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "fork bomb": ("import os\nwhile True: os.fork()", "BlockingIOError"),
    "threads": ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    "process": ("import subprocess\nsubprocess.run(['ls'])", "BlockingIOError"),
    "big file": ("open('big', 'w').write('x' * (64 << 20))", "File too large"),
    "early exit": ("import sys\nsys.exit(0)", "SystemExit"),
    "abrupt exit": ("import os\nos._exit(0)", "without finishing"),
    "crash": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "deep recursion": ("f = lambda: f()\nf()", "RecursionError"),
    "strange exception": ("class E(BaseException):\n    def __str__(self): return 'x' * 10**6\nraise E", "E: xxx"),
    "standard input": ("input()", "EOFError"),
    "kill": ("import os\nos.kill(os.getppid(), 9)", "refused"),
}
needs_namespaces = pytest.mark.skipif(run_python("", QUICK).isolation != "namespaces", reason="this system gives no namespaces")


@pytest.mark.parametrize("name", GOOD)
def test_passes(name):
    run = run_python(GOOD[name], QUICK)
    assert run.passed, run.detail
    assert run.detail == ""


@pytest.mark.parametrize("name", BAD)
def test_fails_and_says_why(name):
    program, why = BAD[name]
    run = run_python(program, Limits(seconds=1.0, memory=512 << 20) if "time" in why else QUICK)
    assert not run.passed
    assert why in run.detail
    assert run.seconds < QUICK.seconds + sandbox.GRACE


@pytest.fixture
def server():
    """A port of this machine that counts who comes."""
    listener, visits = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                visits.append(listener.accept()[0])
            except OSError:
                break

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1], visits
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for visit in visits:
        visit.close()


def test_python_s_sockets_reach_nothing(server):
    port, visits = server
    run = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", QUICK)
    assert not run.passed
    assert not visits


CONNECT = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
handle = libc.socket(2, 1, 0)
address = struct.pack('=H', 2) + struct.pack('!H', {port}) + bytes([127, 0, 0, 1]) + bytes(8)
assert libc.connect(handle, address, 16) == 0, ctypes.get_errno()
"""


@needs_namespaces
def test_namespaces_stop_even_a_connect_from_c(server):
    port, visits = server
    assert not run_python(CONNECT.format(port=port), QUICK).passed
    time.sleep(0.05)
    assert not visits


@needs_namespaces
@pytest.mark.parametrize(
    "folder", [tempfile.gettempdir(), str(Path.home()), "/", str(Path(sandbox.__file__).parent)], ids=["temp", "home", "root", "library"]
)
def test_namespaces_keep_files_outside_as_they_are(folder):
    target = Path(folder) / "ponder-was-here"
    run = run_python(f"open({str(target)!r}, 'w').write('x')", QUICK)
    assert not run.passed
    assert not target.exists()


@needs_namespaces
def test_namespaces_hide_other_processes_and_give_no_rights():
    program = f"""
import os
assert not any(name.isdigit() and int(name) > 2 for name in os.listdir('/proc')), os.listdir('/proc')
rights = [line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))]
assert all(int(r, 16) in (0, 4) for r in rights), rights  # 4: to read the library, when it is root's
assert {os.getpid()} != os.getpid() and os.environ.get('HOME') is None
"""
    run = run_python(program, QUICK)
    assert run.passed, run.detail


def test_secrets_of_our_environment_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("PONDER_SECRET", "xyzzy")
    assert run_python("import os\nassert 'PONDER_SECRET' not in os.environ", QUICK).passed


def test_nothing_is_left_behind(monkeypatch):
    here = tempfile.mkdtemp()  # other test processes have runs of their own in the common folder
    Path(here).chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", here)
    left = lambda: {p.name for p in Path(here).iterdir()}
    before, handles = left(), len(list(Path("/proc/self/fd").iterdir()))
    for program in ("open('x', 'w').write('a')", "while True: pass"):
        run_python(program, Limits(seconds=0.5))
    assert left() == before == set()
    Path(here).rmdir()
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_a_forged_report_without_the_secret_is_no_success():
    forge = (
        'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b\'\\n{"passed": true, "nonce": "0"}\\n\')\n    except OSError: pass\nos._exit(0)'
    )
    assert not run_python(forge, QUICK).passed


def test_runs_side_by_side():
    runs = []
    threads = [threading.Thread(target=lambda i=i: runs.append(run_python(f"assert {i} != 2", QUICK).passed)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runs) == [False, True, True, True]


@pytest.mark.parametrize("settings", [{"seconds": 0.0}, {"seconds": float("inf")}, {"memory": 0}, {"disk": -1}], ids=range(4))
def test_limits_are_positive(settings):
    with pytest.raises(BadField):
        Limits(**settings)


def test_a_child_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/nowhere/python")
    with pytest.raises(PonderError, match="cannot start"):
        run_python("", QUICK)
