"""What Prometheus reads: counts of requests and tokens, times, and how full the server is."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ponder.run.driver import Driver
from ponder.run.recipe import Result

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Sized(Protocol):
    def __len__(self) -> int: ...


class Busy(Protocol):
    """What has lines of waiting and a table of running jobs."""

    @property
    def lines(self) -> Sized: ...

    @property
    def running(self) -> Sized: ...


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ponder_requests", "Responses by path and status.", ["path", "status"], registry=self.registry)
        self.tokens = Counter("ponder_tokens", "Tokens of finished jobs, as booked.", ["kind"], registry=self.registry)
        self.jobs = Counter("ponder_jobs", "Finished jobs by the reason they ended for.", ["stop_reason"], registry=self.registry)
        self.seconds = Histogram("ponder_job_seconds", "From a job's arrival to its result.", buckets=SECONDS, registry=self.registry)

    def watch(self, desk: Busy, driver: Driver) -> None:
        gauges = {
            "ponder_waiting": ("Choices that wait for a place.", lambda: len(desk.lines)),
            "ponder_running": ("Choices that run.", lambda: len(desk.running)),
            "ponder_engine_steps": ("Steps of the engine so far.", lambda: driver.ledger.steps),
            "ponder_engine_seconds": ("Seconds inside the engine so far.", lambda: driver.ledger.engine_seconds),
            "ponder_verifier_seconds": ("Seconds inside verifiers so far.", lambda: driver.ledger.verifier_seconds),
            "ponder_engine_tokens": ("Tokens that the engine computed so far.", lambda: driver.ledger.engine.tokens),
            "ponder_shared_tokens": ("Booked prompt tokens that were computed for somebody else.", lambda: driver.ledger.shared_tokens),
            "ponder_kv_bytes": ("Bytes of keys and values, stored and under way.", lambda: getattr(driver.process, "nbytes", 0)),
        }
        for name, (about, value) in gauges.items():
            Gauge(name, about, registry=self.registry).set_function(value)

    def finished(self, result: Result, seconds: float) -> None:
        cost = result.cost
        for kind in ("prompt", "generated", "verifier", "reused", "wasted"):
            self.tokens.labels(kind).inc(getattr(cost, f"{kind}_tokens"))
        self.jobs.labels(result.stop_reason).inc()
        self.seconds.observe(seconds)

    def answered(self, path: str, status: int) -> None:
        self.requests.labels(path, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
