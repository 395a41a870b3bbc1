"""The runs of late: what was asked, every line of the trace, what came of it. In memory and bounded."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_RUNS = 256
MAX_BYTES = 64 << 20  # of trace lines, all runs together


@dataclass
class Run:
    """One job. Where there are keys, only the client that asked may see it."""

    id: str
    client: str
    strategy: str
    budget: str
    question: str
    seed: int
    user: str | None
    created: float = field(default_factory=time.time)
    state: str = "queued"  # then "running", then "done" (see stop_reason) or "refused"
    stop_reason: str | None = None
    answer: str | None = None
    text: str | None = None
    confidence: float | None = None
    usage: dict[str, object] = field(default_factory=dict)
    seconds: float | None = None
    lines: list[str] = field(default_factory=list)
    num_bytes: int = 0
    waiters: set[asyncio.Event] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "refused")

    def summary(self) -> dict[str, object]:
        hidden = ("client", "lines", "num_bytes", "waiters")
        return {k: v for k, v in vars(self).items() if k not in hidden} | {"lines": len(self.lines)}

    def add(self, lines: tuple[str, ...]) -> None:
        self.lines += lines
        self.num_bytes += sum(map(len, lines))
        self.wake()

    def wake(self) -> None:
        for waiter in self.waiters:
            waiter.set()


class RunLog:
    def __init__(self, max_runs: int = MAX_RUNS, max_bytes: int = MAX_BYTES) -> None:
        self.max_runs, self.max_bytes = max_runs, max_bytes
        self.runs: OrderedDict[str, Run] = OrderedDict()

    def put(self, run: Run) -> None:
        self.runs[run.id] = run
        self.trim()

    def trim(self) -> None:
        """Forgets the oldest finished runs while there are too many, or too many bytes."""
        total = sum(run.num_bytes for run in self.runs.values())
        for run in list(self.runs.values()):
            if len(self.runs) <= self.max_runs and total <= self.max_bytes:
                return
            if run.is_over:
                total -= run.num_bytes
                del self.runs[run.id]

    def of(self, client: str | None) -> Iterator[Run]:
        """A client's runs, the latest first; None: everybody's."""
        return (run for run in reversed(self.runs.values()) if client in (None, run.client))

    def get(self, run_id: str, client: str | None) -> Run | None:
        run = self.runs.get(run_id)
        return run if run is not None and client in (None, run.client) else None
