"""The process behind sandbox.py, run as a script: python -I sandbox_child.py REPORT_FD SCRATCH < spec.json

It makes namespaces, forks, and watches; the fork gives up every privilege, runs the program and reports. Standard library only.
"""

import ctypes
import json
import os
import pwd
import resource
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x4000, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, CAP_DAC_READ_SEARCH = 1, 8, 38, 2
CAPABILITY_V3 = 0x20080522
REFUSED = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "os.kill", "os.killpg")
Say = Callable[[dict[str, object]], int]  # writes facts to the report
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter_namespaces() -> bool:
    """New mount, network, process, IPC and host-name namespaces for our next child; False where the system refuses."""
    uid, gid, wanted = os.getuid(), os.getgid(), NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    if uid == 0 and LIBC.unshare(wanted) == 0:
        return True
    try:
        checked(LIBC.unshare(wanted | NEWUSER))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except (OSError, AttributeError):
        return False
    return True


def lock_files(scratch: str) -> None:
    """Every mount read-only but a small fresh one at `scratch`; sockets and shared memory of the machine out of sight."""
    checked(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    checked(LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)))
    checked(LIBC.mount(b"tmpfs", scratch.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=64m,mode=777"))
    for hidden in (b"/run", b"/dev/shm"):
        LIBC.mount(b"tmpfs", hidden, b"tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, b"size=4k")
    LIBC.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    os.chdir(scratch)


def drop_privileges(scratch: str) -> None:
    """Root becomes `nobody`; everybody loses all capabilities for good, but for the one to read where the library needs it."""
    kept = 0
    if os.getuid() == 0:
        with suppress(KeyError, OSError):
            kept = become_nobody(scratch)
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    LIBC.capset(struct.pack("Ii", CAPABILITY_V3, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_nobody(scratch: str) -> int:
    """Changes user and group; returns the capabilities to keep: to read every file, where the library is root's alone."""
    nobody = pwd.getpwnam("nobody")
    os.chown(scratch, nobody.pw_uid, nobody.pw_gid)
    os.seteuid(nobody.pw_uid)
    is_readable = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
    return 0 if is_readable else 1 << CAP_DAC_READ_SEARCH


def limit_resources(spec: dict[str, object]) -> None:
    cpu = int(float(str(spec["seconds"]))) + 2
    limits = {
        resource.RLIMIT_AS: spec["memory"], resource.RLIMIT_CPU: cpu, resource.RLIMIT_FSIZE: spec["disk"],
        resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0,
    }  # fmt: skip
    for what, value in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (int(str(value)), int(str(value))))


def refuse(event: str, _arguments: tuple[object, ...]) -> None:
    if event in REFUSED:
        raise PermissionError(f"{event} is refused in the sandbox")


def run(spec: dict[str, object], say: Say, scratch: str, is_apart: bool) -> None:
    """In the fork: gives everything up, runs the program, reports, and ends the process."""
    try:
        if is_apart:
            lock_files(scratch)
        drop_privileges(scratch)
        limit_resources(spec)
        sys.addaudithook(refuse)
    except OSError as error:
        say({"stopped": f"sandbox could not be closed: {error}"})
        os._exit(0)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(str(spec["program"]), "candidate", "exec"), module.__dict__)
    except BaseException as error:  # the program may raise anything, SystemExit too
        say({"error": f"{type(error).__name__}: {error}"[:300].rstrip(": ")})
        os._exit(0)
    say({"passed": True})
    os._exit(0)


def watch(pid: int, seconds: float) -> str | None:
    """Waits for the fork; kills it (under namespaces: and all it started) at the time limit. Says what stopped it."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else None
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"time limit of {seconds:g} s"


def main() -> None:
    report, scratch = int(sys.argv[1]), sys.argv[2]
    spec = json.load(sys.stdin)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    say: Say = lambda facts: os.write(report, b"\n" + json.dumps({"nonce": spec["nonce"], **facts}).encode() + b"\n")
    is_apart = enter_namespaces()
    if spec["require_namespaces"] and not is_apart:
        say({"refused": "this system gives no namespaces to isolate programs; allow user namespaces, or set require_namespaces=False"})
        return
    say({"isolation": "namespaces" if is_apart else "limits"})
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        run(spec, say, scratch, is_apart)
    stopped = watch(pid, float(spec["seconds"]))
    if stopped:
        say({"stopped": stopped})


if __name__ == "__main__":
    main()
