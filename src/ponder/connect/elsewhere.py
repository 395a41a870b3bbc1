"""Models that the engine does not run: endpoints, and folders that transformers runs."""

from pathlib import Path

import ponder.catalogue as catalogue
from ponder.backends.transformers_process import open_transformers
from ponder.core.accelerations import PLAIN, Accelerations
from ponder.core.errors import BadField
from ponder.core.roles import Process
from ponder.engine.process import Settings
from ponder.remote.endpoint import is_remote, read_endpoint
from ponder.remote.open import open_remote

TRANSFORMERS = "transformers:"  # before a folder


def is_elsewhere(model: str) -> bool:
    return is_remote(model) or model.startswith(TRANSFORMERS)


def check_settings(
    model: str, *, weights: str | None, device: str, threads: int | None, context: int | None, ray: str | None = None,
    accelerations: Accelerations = PLAIN,
) -> None:  # fmt: skip
    """Refuses settings of the engine for a model that it does not run, and accelerations that no name stands for."""
    catalogue.accelerated(Settings(), accelerations)
    catalogue.check_partner(accelerations)
    settings = {"weights": weights, "device": None if device == "cpu" else device, "threads": threads, "context": context, "ray": ray}
    settings |= accelerations.given
    given = [f"{name}={value}" for name, value in settings.items() if value is not None]
    if given and is_elsewhere(model):
        raise BadField(
            f"{', '.join(given)}: of the engine, which does not run {model}; leave it out (an endpoint's own settings stand in its .toml file)"
        )


def open_elsewhere(model: str) -> Process:
    if is_remote(model):
        return open_remote(read_endpoint(model), catalogue.DIALECTS)
    return open_transformers(Path(model.removeprefix(TRANSFORMERS)))
