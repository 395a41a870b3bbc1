"""Joining a Ray cluster: "local" starts one in this program's own processes, "auto" finds one on this machine, HOST:PORT names one."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ponder.core.errors import BadField, PonderError

CONNECT_SECONDS = 5.0
OBJECTS = 100 << 20  # bytes of a local cluster's object store: only messages go through it
NO_RAY = "many machines need Ray, which is not installed; install it with: pip install 'ponder[ray]'"


@contextmanager
def joined(address: str, *, cpus: int | None = None) -> Iterator[None]:
    """Inside, this program is a driver of that cluster; one that was a driver before is left as it was.

    cpus: how many a "local" cluster offers; None: all. Raises BadField for an address that cannot be one, PonderError when nobody
    answers there.
    """
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise PonderError(NO_RAY) from error
    if ray.is_initialized():
        yield
        return
    try:
        _join(address, cpus)
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    if address in ("local", "auto"):
        return
    match = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise BadField(
            f"ray={address!r}: must be 'local', 'auto' or HOST:PORT of a cluster's head, as in 10.0.0.1:6379 (ray:// is for clients outside a "
            "cluster; start this on one of its machines, after `ray start --address=HOST:PORT` there)"
        )


def _join(address: str, cpus: int | None) -> None:
    import ray

    if address not in ("local", "auto"):
        _reach(address)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECTS, "_node_ip_address": "127.0.0.1"}
    tries = 2 if address == "local" else 1  # a busy machine misses Ray's own time limits
    for left in reversed(range(tries)):
        try:
            ray.init(address=address, **settings)
            return
        except Exception as error:  # Ray raises plain Exception and RuntimeError here
            ray.shutdown()
            if not left:
                line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                mend = "this machine is too busy: try again" if address == "local" else "run `ray start --address=HOST:PORT` on this machine first"
                raise PonderError(f"ray={address!r}: cannot join the cluster: {line[:300]}; {mend}") from error


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise PonderError(
            f"ray={address!r}: nobody answers there within {CONNECT_SECONDS:.0f} s ({error}); start the head with `ray start --head --port={port}`, "
            "or mend the address"
        ) from error
