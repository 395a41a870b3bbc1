"""A tensor as if a file held it."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class InMemory:
    """A RawTensor (core.formats) over a float32 tensor."""

    weight: Tensor
    name: str = "w"
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.weight[start:stop].clone()

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.dense(start, stop).numpy().view(np.uint8)
