"""The verb `serve --ray`: the server of cli/serve.py, several times, behind Ray Serve."""

import signal
from dataclasses import dataclass

from starlette.applications import Starlette

import ponder.catalogue as catalogue
from ponder.cli import show
from ponder.cli.many import cluster
from ponder.cli.serve import Opening
from ponder.connect.model import open_by_name
from ponder.core.errors import BadField
from ponder.run.driver import Driver
from ponder.serve.app import App, Site
from ponder.serve.desk import Limits
from ponder.serve.menu import Menu
from ponder.serve.server import bind


@dataclass(frozen=True, kw_only=True)
class Build:
    """Opens the model and makes the application, wherever it is called."""

    opening: Opening
    menu: Menu
    limits: Limits
    site: Site

    def __call__(self) -> Starlette:
        process = self.opening.by(open_by_name)
        return App(lambda: Driver(process), self.menu, self.limits, self.site).build()


def run(build: Build, *, address: str | None, replicas: int | None, host: str, port: int) -> int:
    """Serves until a signal; 0. What can be refused is refused before a model is opened."""
    catalogue.SPECS.read(build.menu.default)
    opening = build.opening
    if address is None:
        raise BadField(f"replicas={replicas}: only with --ray, which says on which cluster")
    if opening.store is not None:
        raise BadField(f"store={opening.store} with --ray: replicas on several machines share no file; leave it out")
    with bind(host, port) as listening:
        port = listening.getsockname()[1]
    cluster("address").check_address(address)
    serving = cluster("serving")
    service = serving.Service(
        host=host, port=port, num=1 if replicas is None else replicas, cpus=opening.threads or 1, gpus=int(opening.device == "cuda"),
        most=build.limits.max_jobs + build.limits.max_queue, drain=build.limits.drain,
    )  # fmt: skip
    with cluster("address").joined(address):
        try:
            with serving.until_signal():
                with show.waiting(f"opening {build.menu.model} on the cluster"):
                    serving.start(build, service)
                show.say(f"{build.menu.model} at http://{host}:{port}/v1, {service.num} replica{'s' * (service.num != 1)} of {service.cpus} CPUs")
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            show.say("stopping")
        finally:
            serving.stop()
    return 0
