"""Products of drafters' own small matrices: compiled ones of 8 bits where the kernels are, else plain ones. A part of the room, not a technique.

A draft of few rows waits for bytes of weights: 8 bits are half of bfloat16's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.draft import Host
from ponder.native.build import library
from ponder.native.matrix import pack_linear

Product = Callable[[Tensor], Tensor]  # [N, in] -> float32 [N, out]
STEP = 64  # rows of the output head's columns that are computed at a time


@dataclass(frozen=True)
class Rows:
    """A RawTensor (core.formats) over float32 rows."""

    weight: Tensor
    name: str = "draft"
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.weight[start:stop]

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.weight[start:stop].numpy().view(np.uint8)


def product(weight_OI: Tensor) -> Product:
    """x -> x W^T on the CPU, in 8 bits by groups of 32 where the compiled kernels are."""
    weight_OI = weight_OI.float().contiguous()
    if library():
        return pack_linear((Rows(weight_OI),), (8,), torch.float32).apply
    return lambda x: torch.nn.functional.linear(x.float(), weight_OI)


def rows_of(host: Host, ids: Tensor, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """float32 [S, D] on the CPU: the target's own output rows of `ids`, as it multiplies states of that type on that device by them."""
    unit = torch.eye(host.dim, dtype=dtype, device=device)
    return torch.cat([host.logits(some).cpu()[:, ids] for some in unit.split(STEP)]).T.float().contiguous()
