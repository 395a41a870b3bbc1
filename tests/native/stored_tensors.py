"""Tensors as files hold them, of every kind, without a file."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.models.dequantize import KINDS, dequantize


@dataclass(frozen=True)
class Stored:
    """A RawTensor over the blocks of a file."""

    stored: np.ndarray
    kind: str
    shape: tuple[int, ...]
    name: str = "w"

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return torch.from_numpy(dequantize(KINDS[self.kind], self.stored[start:stop]))

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.stored[start:stop]


def stored(kind: str, rows: int, columns: int, seed: int = 0) -> Stored:
    """Random codes under scales such as files have."""
    rng, layout = np.random.default_rng(seed), KINDS[kind]
    if layout.values == 1:
        w = rng.normal(size=(rows, columns)).astype(np.float32)
        raw = {"F32": w, "F16": w.astype(np.float16), "BF16": (w.view(np.uint32) >> 16).astype(np.uint16)}[kind]
        return Stored(raw.view(np.uint8), kind, (rows, columns))
    raw = rng.integers(0, 256, (rows, columns // layout.values, layout.nbytes), dtype=np.uint8)
    for at in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        raw[..., at : at + 2] = rng.uniform(-0.1, 0.1, (*raw.shape[:2], 1)).astype(np.float16).view(np.uint8)
    return Stored(raw.reshape(rows, -1), kind, (rows, columns))


def in_float32(weight: Tensor) -> Stored:
    """`weight` [rows, columns] as a file of float32 holds it."""
    return Stored(weight.contiguous().numpy().view(np.uint8), "F32", tuple(weight.shape))
