"""`--ray`: the same verbs, their problems spread over the machines of a cluster."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from ponder import catalogue
from ponder.cli import show
from ponder.connect.elsewhere import check_settings, is_elsewhere
from ponder.connect.model import open_by_name
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.asks import Prompt
from ponder.core.errors import BadField, PonderError
from ponder.core.roles import Process
from ponder.remote.endpoint import is_remote
from ponder.run.compare import Comparison, Named
from ponder.run.compare import compare as compare_here

NO_RAY = "--ray needs Ray, which is not installed; install it with: pip install 'ponder[ray]'"

NO_SERVE = "serve --ray needs Ray Serve, which is not installed; install it with: pip install 'ponder[serve,ray]' 'ray[serve]'"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which model, how it runs, and on which cluster; ray None: on this machine."""

    model: str
    weights: str | None
    threads: int | None
    device: str
    context: int | None = None
    ray: str | None = None
    replicas: int | None = None
    accelerations: Accelerations = PLAIN

    def __post_init__(self) -> None:
        """What can be refused is refused before a task is read."""
        check_settings(
            self.model, weights=self.weights, device=self.device, threads=self.threads, context=self.context, ray=self.ray,
            accelerations=self.accelerations,
        )  # fmt: skip
        if self.ray is None and self.replicas is not None:
            raise BadField(f"replicas={self.replicas}: only with --ray, which says on which cluster")
        if self.ray is None or self.device == "cpu":
            catalogue.weights_on(self.device, self.weights)
        elif self.device != "cuda":
            raise BadField(f"device={self.device!r} with --ray: must be cpu or cuda; Ray gives each replica a card of its own")
        if self.ray is not None and is_remote(self.model):
            raise BadField(f"model {self.model} with --ray: it answers many at once from one machine already; leave --ray out")
        if self.ray is not None:
            cluster("address").check_address(self.ray)
            self.want()

    @property
    def format(self) -> str:
        """The weight format by its name; of a model that the engine does not run, that it is served elsewhere."""
        if is_elsewhere(self.model):
            return "elsewhere"
        return self.weights or ("native" if self.device == "cpu" else "dense")

    def want(self) -> object:
        return cluster("pool").Want(num=self.replicas, cpus=self.threads, gpus=int(self.device == "cuda"))


@contextmanager
def answering(opening: Opening, here: Callable[[], Process], prompt: Prompt) -> Iterator[tuple[Named, Callable[..., Comparison]]]:
    """What answers, and the comparison that it runs: `here()`, or replicas on the cluster, which end with the block."""
    if opening.ray is None:
        yield here(), compare_here
        return
    pooling = cluster("pool")
    with cluster("address").joined(opening.ray):
        threads = opening.threads or pooling.smallest()
        opener = partial(
            open_by_name, opening.model, opening.weights, threads, device=opening.device, context_len=opening.context,
            accelerations=opening.accelerations,
        )  # fmt: skip
        pool = pooling.Pool(opener, opening.want())
        try:
            with show.waiting(f"opening {opening.model} on {pooling.describe_cluster()}"):
                pool.open(prompt)
            show.say(f"{len(pool.members)} replica{'s' * (len(pool.members) != 1)} of {pool.cpus} CPUs on {pooling.describe_cluster()}")
            yield pool, cluster("compare").compare
        finally:
            pool.close()


def cluster(name: str) -> ModuleType:
    """A module of the room that needs Ray."""
    try:
        return importlib.import_module(f"ponder.cluster.{name}")
    except ModuleNotFoundError as error:
        if name == "serving" and error.name != "ray":  # of the packages that Ray Serve needs beside Ray
            missing = str(error).partition(".")[0]
            raise PonderError(f"{NO_SERVE} ({missing})") from error
        if error.name != "ray":
            raise
        raise PonderError(NO_RAY) from error
