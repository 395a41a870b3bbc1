"""Machines made of network namespaces: one bridge, an address each, nothing else to be reached from any of them."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

NET = "10.77.0"  # only inside the namespaces
OBJECTS = "100000000"


def can_make_machines() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None and Path("/proc/self/ns/net").exists()


class Machines:
    """`num` machines; number 0 holds the cluster's head and the driver, and offers no CPU."""

    def __init__(self, num: int) -> None:
        self.names = [f"ponder-{os.getpid()}-{i}" for i in range(num)]
        self.switch, self.children = f"ponder-{os.getpid()}-net", list[subprocess.Popen]()
        self.token = secrets.token_hex(32)  # Ray lets in who has it
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short path: sockets lie in it

    def __enter__(self) -> "Machines":
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            run("ip", "netns", "add", name)
            run("ip", "-n", self.switch, "link", "add", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "-n", self.switch, "link", "set", f"v{i}", "master", "br0", "up")
            run("ip", "-n", name, "addr", "add", f"{self.ip(i)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for i in range(len(self.names)):
            self.kill(i)
        for child in self.children:
            child.wait(timeout=30)
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    @staticmethod
    def ip(i: int) -> str:
        return f"{NET}.{i + 1}"

    @property
    def address(self) -> str:
        return f"{self.ip(0)}:6379"

    def start(self, i: int, *command: object) -> subprocess.Popen:
        """A program on machine i."""
        env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        with (self.scratch / f"out-{len(self.children)}.txt").open("w") as out:
            child = subprocess.Popen(["ip", "netns", "exec", self.names[i], *map(str, command)], stdout=out, stderr=out, env=env)
        self.children.append(child)
        return child

    def said(self, child: subprocess.Popen) -> str:
        return (self.scratch / f"out-{self.children.index(child)}.txt").read_text()

    def join(self, i: int, cpus: int) -> None:
        """Starts Ray's node there and waits for it."""
        role = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.scratch}"] if i == 0 else [f"--address={self.address}"]
        settings = [f"--node-ip-address={self.ip(i)}", f"--num-cpus={cpus}", f"--object-store-memory={OBJECTS}", "--disable-usage-stats", "--block"]
        child = self.start(i, sys.executable, "-m", "ray.scripts.scripts", "start", *role, *settings)
        wait_for(lambda: "will now block" in self.said(child) or child.poll() is not None, 90, f"machine {i}")
        assert child.poll() is None, self.said(child)

    def pids(self, i: int) -> list[int]:
        return [int(pid) for pid in subprocess.run(["ip", "netns", "pids", self.names[i]], capture_output=True, text=True).stdout.split()]

    def kill(self, i: int) -> int:
        """Ends every process there at once, as when its power goes; the number of them."""
        killed = self.pids(i)
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(killed)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def wait_for(holds, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)
