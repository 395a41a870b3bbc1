"""The embedding, whose rows are looked up and never multiplied: as the file stores it where that is smaller, decoded row by row.

For a large vocabulary it is a fifth of a quantised model, of which a step wants a few rows: a large one stays in the file, in whose pages the
system keeps what is used often. A row costs some microseconds to read. (The file must stay as it is; see `files`.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.formats import Embedding, RawTensor
from ponder.models.dequantize import KINDS, Kind, dequantize

MAX_VALUES = 1 << 20  # numbers decoded to float32 at a time
MAX_HELD = 16 << 20  # bytes of an embedding that is held in memory


@dataclass(frozen=True)
class DenseEmbedding:
    weight_VD: Tensor

    @property
    def nbytes(self) -> int:
        return self.weight_VD.nbytes

    def rows(self, tokens: Tensor) -> Tensor:
        return self.weight_VD.index_select(0, tokens).float()


@dataclass(frozen=True)
class StoredEmbedding:
    """blocks: uint8 [V, bytes per row] of a storage kind."""

    blocks: Tensor
    kind: Kind

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def rows(self, tokens: Tensor) -> Tensor:
        found = self.blocks.index_select(0, tokens)
        return torch.from_numpy(dequantize(self.kind, found.cpu().numpy())).to(tokens.device)


@dataclass(frozen=True)
class FileEmbedding:
    """Rows read when they are wanted. dtype: what they are rounded to; None for those that a kind stores in fewer bytes."""

    raw: RawTensor
    dtype: torch.dtype | None
    nbytes: int = 0

    def rows(self, tokens: Tensor) -> Tensor:
        """Raises IndexError, and BadModelFile when the file changed."""
        ids, places = np.unique(tokens.cpu().numpy(), return_inverse=True)
        if len(ids) and not 0 <= ids[0] <= ids[-1] < self.raw.shape[0]:
            raise IndexError(f"rows {ids[0]} to {ids[-1]} of an embedding that has {self.raw.shape[0]}")
        is_run = len(ids) and ids[-1] - ids[0] + 1 == len(ids)  # neighbours are read at once
        spans = [(int(ids[0]), int(ids[-1]) + 1)] if is_run else [(i, i + 1) for i in ids.tolist()] or [(0, 0)]
        blocks = [self.raw.blocks(start, stop) for start, stop in spans]
        found = torch.from_numpy(dequantize(KINDS[self.raw.kind], np.concatenate(blocks)))[torch.from_numpy(places)]
        return (found if self.dtype is None else found.to(self.dtype).float()).to(tokens.device)


def open_embedding(raw: RawTensor, dtype: torch.dtype) -> Embedding:
    """That of `load_embedding`, left in the file where it would take more than MAX_HELD bytes."""
    is_smaller = is_stored_smaller(raw, dtype)
    nbytes = raw.shape[0] * (KINDS[raw.kind].row_nbytes(raw.shape[1]) if is_smaller else raw.shape[1] * dtype.itemsize)
    return FileEmbedding(raw, None if is_smaller else dtype) if nbytes > MAX_HELD else load_embedding(raw, dtype)


def is_stored_smaller(raw: RawTensor, dtype: torch.dtype) -> bool:
    return KINDS[raw.kind].row_nbytes(raw.shape[1]) < raw.shape[1] * dtype.itemsize


def load_embedding(raw: RawTensor, dtype: torch.dtype) -> Embedding:
    """Blocks as they are when they take fewer bytes than `dtype`, else the numbers rounded to `dtype`."""
    num_rows, width = raw.shape
    kind = KINDS[raw.kind]
    step = max(1, MAX_VALUES // width)
    spans = [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    if is_stored_smaller(raw, dtype):
        blocks = torch.empty(num_rows, kind.row_nbytes(width), dtype=torch.uint8)
        for start, stop in spans:
            blocks[start:stop] = torch.from_numpy(raw.blocks(start, stop))
        return StoredEmbedding(blocks, kind)
    weight = torch.empty(num_rows, width, dtype=dtype)
    for start, stop in spans:
        weight[start:stop] = raw.dense(start, stop)
    return DenseEmbedding(weight)
