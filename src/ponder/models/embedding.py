"""The embedding, whose rows are looked up and never multiplied: kept as the file stores it where that is smaller, decoded row by row.

A quantised model's embedding takes half or a third of what it would in bfloat16, and for a large vocabulary it is a fifth of the model.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.formats import RawTensor
from ponder.models.dequantize import KINDS, Kind, dequantize

MAX_VALUES = 1 << 20  # numbers decoded to float32 at a time


class Embedding(Protocol):
    nbytes: int

    def rows(self, tokens: Tensor) -> Tensor:
        """float32 [T, D] of tokens int64 [T], the caller's own."""
        ...


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


def load_embedding(raw: RawTensor, dtype: torch.dtype) -> Embedding:
    """Blocks as they are when they take fewer bytes than `dtype`, else the numbers rounded to `dtype`."""
    num_rows, width = raw.shape
    kind = KINDS[raw.kind]
    step = max(1, MAX_VALUES // width)
    spans = [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    if kind.row_nbytes(width) < width * dtype.itemsize:
        blocks = torch.empty(num_rows, kind.row_nbytes(width), dtype=torch.uint8)
        for start, stop in spans:
            blocks[start:stop] = torch.from_numpy(raw.blocks(start, stop))
        return StoredEmbedding(blocks, kind)
    weight = torch.empty(num_rows, width, dtype=dtype)
    for start, stop in spans:
        weight[start:stop] = raw.dense(start, stop)
    return DenseEmbedding(weight)
