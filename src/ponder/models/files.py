"""A model file, read in pieces through one open descriptor, that must stay as it was when it was opened.

Pieces are copied (pread), not mapped: the pages of a map count as memory of the program as long as it lives, and the end of a map whose file was cut
off kills it. A file that another replaces under the same name is still read whole, for the descriptor is of the old one; a file that was
written to or cut off is an error at the next read, never other weights.
"""

import hashlib
import os
import weakref
from pathlib import Path

import numpy as np

from ponder.core.errors import BadModelFile

HASH_STEP = 1 << 20  # bytes hashed at a time


class ModelFile:
    """The regular file at `path`, open until nothing refers to it. Reads from several threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        """Raises BadModelFile when there is no such file or it cannot be read."""
        self.path = path
        if not path.is_file():
            raise BadModelFile(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadModelFile(f"{path}: cannot be read: {error}") from error
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._now()
        self.size = self._state[0]

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], owned. Raises BadModelFile when the file is not as it was when opened, or cannot be read."""
        out = np.empty(nbytes, dtype=np.uint8)
        self._fill(memoryview(out), offset)
        self.check()
        return out

    def check(self) -> None:
        """Raises BadModelFile when the file was written to or cut off since it was opened."""
        now = self._now()
        if now != self._state:
            what = f"has {now[0]} bytes, not {self.size}" if now[0] != self.size else "was written to"
            raise BadModelFile(f"{self.path}: {what} since it was opened; open the model again")

    def sha256(self) -> str:
        """Hex digest of the whole file. 0.06 s per 100 MB."""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(HASH_STEP, self.size)))
        for offset in range(0, self.size, HASH_STEP):
            piece = buffer[: min(HASH_STEP, self.size - offset)]
            self._fill(piece, offset)
            digest.update(piece)
        self.check()
        return digest.hexdigest()

    def _fill(self, view: memoryview, offset: int) -> None:
        while len(view):
            try:
                num = os.preadv(self.descriptor, [view], offset)
            except OSError as error:
                raise BadModelFile(f"{self.path}: cannot be read at byte {offset}: {error}") from error
            if not num:
                self.check()
                raise BadModelFile(f"{self.path}: ends at byte {offset}, before what is read")
            view, offset = view[num:], offset + num

    def _now(self) -> tuple[int, int]:
        """Size, and when the contents last changed."""
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns
