"""Loads a model and prints what memory that took, in bytes: python load_memory.py MODEL FORMAT HOW. Memory is a program's, so this is one.

HOW: "as it is", or a deliberately wrong way: "float32" decodes every matrix before it packs the first, "mapped" reads through a map that stays.
"""

import json
import mmap
import sys
from pathlib import Path

import numpy as np

from ponder import catalogue
from ponder.models import checkpoint as checkpoints
from ponder.models.checkpoint import FileCheckpoint, StoredTensor
from ponder.models.decoder import load
from ponder.models.files import ModelFile


def resident(what: str) -> int:
    """Bytes of this program in memory: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


class MappedFile(ModelFile):
    """Wrong: pages of the file that were read stay in the program's memory."""

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        if not hasattr(self, "map"):
            self.map = np.frombuffer(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        return self.map[offset : offset + nbytes].copy()


class DecodedCheckpoint(FileCheckpoint):
    """Wrong: all tensors in float32 at once."""

    def tensor(self, name: str) -> StoredTensor:
        if not DECODED:
            DECODED.extend(super(DecodedCheckpoint, self).tensor(n).dense() for n in self.entries)
        return super().tensor(name)


DECODED: list[object] = []


def main(path: Path, name: str, how: str) -> None:
    weights, head = catalogue.WEIGHTS[name], catalogue.HEADS[name]
    if how == "mapped":
        checkpoints.read_gguf.__globals__["ModelFile"] = MappedFile
    before = resident("VmRSS")
    checkpoint = checkpoints.open_checkpoint(path)
    if how == "float32":
        checkpoint = DecodedCheckpoint(checkpoint.config, checkpoint.entries, checkpoint.sources, checkpoint.are_pairs_interleaved)
    decoder = load(checkpoint, weights, head)
    figures = {"peak": resident("VmHWM") - before, "stays": resident("VmRSS") - before, "packed": decoder.nbytes, "file": path.stat().st_size}
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
