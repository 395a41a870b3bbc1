"""A model file that changes while it is open: never other weights, never a dead program."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.gguf_writer import write
from models.test_checkpoint import CONFIG, VALUES, tiny_llama, weights_of, write_folder
from ponder.core.errors import BadModelFile
from ponder.models.checkpoint import FileCheckpoint, open_checkpoint
from ponder.models.files import HASH_STEP, ModelFile

TICK = 0.02  # seconds, more than the file system's clock needs to move on


@pytest.fixture(params=["gguf", "folder"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileCheckpoint, Path]:
    """A model in a file of its own, open, and the file that holds its weights."""
    if request.param == "gguf":
        path = weights = write(tmp_path / "m.gguf", *tiny_llama(np.random.default_rng(0)))
    else:
        path = write_folder(tmp_path / "m", weights_of(CONFIG), VALUES)
        weights = path / "model.safetensors"
    time.sleep(TICK)
    return open_checkpoint(path), weights


def largest(checkpoint: FileCheckpoint) -> str:
    return max(checkpoint.entries, key=lambda name: np.prod(checkpoint.entries[name].shape))


def test_a_file_that_is_cut_off_is_named(opened: tuple[FileCheckpoint, Path]):
    checkpoint, path = opened
    size = path.stat().st_size
    os.truncate(path, size // 2)
    for name in checkpoint.entries:
        with pytest.raises(BadModelFile, match=rf"has {size // 2} bytes, not {size} since it was opened; open the model again"):
            checkpoint.tensor(name).dense()
    with pytest.raises(BadModelFile, match="since it was opened"):
        _ = checkpoint.model_id


def test_a_file_that_is_written_to_is_named(opened: tuple[FileCheckpoint, Path]):
    checkpoint, path = opened
    name = largest(checkpoint)
    before = checkpoint.tensor(name).dense()
    with path.open("r+b") as file:
        file.seek(-before.nbytes // 8, 2)
        file.write(bytes(64))
    with pytest.raises(BadModelFile, match="was written to since it was opened"):
        checkpoint.tensor(name).blocks(0, 1)
    with pytest.raises(BadModelFile, match="was written to"):
        _ = checkpoint.model_id


def test_a_file_that_another_replaces_is_still_read(opened: tuple[FileCheckpoint, Path], tmp_path: Path):
    checkpoint, path = opened
    before = {name: checkpoint.tensor(name).dense() for name in checkpoint.entries}
    other = tmp_path / "other"
    other.write_bytes(bytes(path.stat().st_size))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    other.replace(path)
    assert all(torch.equal(checkpoint.tensor(name).dense(), weight) for name, weight in before.items())
    assert next(source for source in checkpoint.sources if source.path == path).sha256() == digest


def test_a_map_would_die(tmp_path: Path):
    """Teeth: the same file, mapped and cut off, ends the program that reads it."""
    code = (
        "import mmap, os, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "os.truncate(sys.argv[1], 4096)\n"
        "print(data[8192])\n"
    )
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    assert subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True).returncode == -signal.SIGBUS
    path.write_bytes(bytes(1 << 16))
    file = ModelFile(path)
    os.truncate(path, 4096)
    with pytest.raises(BadModelFile, match="has 4096 bytes, not 65536"):
        file.read(8192, 1)


@pytest.mark.parametrize("size", [1, HASH_STEP, HASH_STEP + 7])
def test_the_digest_is_of_the_whole_file(tmp_path: Path, size: int):
    raw = np.random.default_rng(0).bytes(size)
    path = tmp_path / "file"
    path.write_bytes(raw)
    file = ModelFile(path)
    assert file.sha256() == hashlib.sha256(raw).hexdigest()
    assert file.read(size // 2, size - size // 2).tobytes() == raw[size // 2 :]
    with pytest.raises(BadModelFile, match="ends at byte"):
        file.read(size - 1, 2)


def test_the_descriptor_is_closed_with_the_last_reference(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    file = ModelFile(path)
    descriptor = file.descriptor
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
