"""A worker: one engine in a process of its own, told what to do by JSON lines: `python -m peers.serve ENGINE`.

    {"do": "load", "path", "threads", "option"}  -> {"seconds", "rss_mb", "peak_mb", "setting", "versions", "sha256"}
    {"do": "run", "work", "warm", "peak"}        -> {"seconds", "peak_mb", "counts", "times", "ids" or "texts"}
    {"do": "quit"}

Standard library only: it runs in the peers' environment, where nothing of ours is installed. Whatever a library prints goes to stderr.
"""

import ctypes
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

PR_SET_PDEATHSIG = 1
ENGINES = {
    "ponder": "ours", "llama.cpp": "llama_cpp", "openvino": "openvino_genai_", "transformers": "transformers_",
    "llama.cpp lookup": "llama_lookup", "transformers lookup": "transformers_lookup",
}  # fmt: skip


@dataclass
class Made:
    """What a run made. times: seconds from the start at which each token of each sequence came, as far as the engine tells."""

    seconds: float
    counts: list[int]
    times: list[list[float]]
    ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class Engine(Protocol):
    """`work`: {"kind", "prompts": [{"text", "ids"}], "new": [tokens each], "num": samples, "at": [seconds], "seed", "variant"}."""

    def load(self, path: Path, threads: int, option: str) -> str:
        """Opens the model; returns its setting in words. All of it is timed."""
        ...

    def ready(self, work: dict) -> None:
        """Whatever this work needs that is not timed: a configuration of its own, checks."""
        ...

    def run(self, work: dict) -> Made: ...


def status_mb(name: str) -> float | None:
    """A line of /proc/self/status (VmRSS, VmHWM, RssAnon) in MB of 10^6 bytes; None where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name + ":")), None)


def forget_peak() -> None:
    """Makes the peak begin anew at what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"the peak of memory cannot be reset: {error}", file=sys.stderr)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def answer(engine: Engine, order: dict) -> dict:
    if order["do"] == "load":
        path = engine.prepare(Path(order["path"])) if hasattr(engine, "prepare") else Path(order["path"])
        start = time.perf_counter()
        setting = engine.load(path, order["threads"], order["option"])
        seconds = time.perf_counter() - start
        memory = {"rss_mb": status_mb("VmRSS"), "anon_mb": status_mb("RssAnon"), "peak_mb": status_mb("VmHWM")}
        return {"seconds": seconds, **memory, "setting": setting, "versions": engine.versions(), "sha256": sha256(path), "file": path.name}
    engine.ready(order["work"])
    if order.get("warm"):
        engine.run(order["warm"])
    if order.get("peak") == "new":
        forget_peak()
    made = engine.run(order["work"])
    return {**asdict(made), "peak_mb": status_mb("VmHWM"), "anon_mb": status_mb("RssAnon"), "load": os.getloadavg()[0]}


def die_with_parent() -> None:
    """Whatever ends our parent ends us, even while we are halted (Linux; elsewhere the parent must end in order)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(name: str) -> None:
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like a reply
    try:
        engine = importlib.import_module(f"peers.{ENGINES[name]}").Peer()
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    replies.write(json.dumps({"ok": True}) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "quit":
            break
        try:
            reply = answer(engine, order)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        replies.write(json.dumps(reply) + "\n")
    replies.flush()
    os._exit(0)  # engines whose threads outlive their owner must not keep us


if __name__ == "__main__":
    main(sys.argv[1])
