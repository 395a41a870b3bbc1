"""`ponder serve` on many machines: replicas of the whole application behind Ray Serve, which routes requests and replaces what dies.

Each replica holds a model and its own queues; a request stays with the replica that it came to, streams included. What is under way on
a replica that dies fails there, and its client asks again; new requests go to the others at once.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray import serve
from ray.serve.config import HTTPOptions

from ponder.core.errors import BadField, PonderError

NAME = "ponder"


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where clients come in, and how many replicas of which size answer."""

    host: str
    port: int
    num: int = 1
    cpus: int = 1  # of each replica
    gpus: int = 0
    most: int = 256  # requests that a replica has at a time; beyond, they wait at the entrance
    drain: float = 30.0  # seconds that requests under way have at the end
    patience: float = 600.0  # seconds until a replica must answer

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"replicas={self.num}: must be at least 1")


class Replica:
    """A deployment's class: `build` makes the ASGI application where the replica is."""

    def __init__(self, build: Callable[[], object]) -> None:
        self.build = build

    def __serve_build_asgi_app__(self) -> object:
        return self.build()


def start(build: Callable[[], object], service: Service) -> None:
    """Returns when a replica answers. Raises PonderError when none comes to that."""
    resources = {"num_cpus": service.cpus, "num_gpus": service.gpus}
    deployment = serve.deployment(
        serve.ingress()(Replica), name=NAME, num_replicas=service.num, ray_actor_options=resources, max_ongoing_requests=service.most,
        graceful_shutdown_timeout_s=service.drain, health_check_period_s=2.0, health_check_timeout_s=30.0,
    )  # fmt: skip
    serve.start(http_options=HTTPOptions(host=service.host, port=service.port))
    try:
        serve.run(deployment.bind(build), name=NAME, route_prefix="/", logging_config={"log_level": "ERROR", "enable_access_log": False})
    except RuntimeError as error:
        line = " ".join(str(error).split())[:400]
        raise PonderError(f"the replicas do not come up: {line}; see that each fits into its machine, and that ponder is the same on all") from error


def stop() -> None:
    serve.shutdown()


@contextmanager
def until_signal() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt inside, while replicas start, too. Ray's own answer to SIGTERM is to abort."""

    def on_signal(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
