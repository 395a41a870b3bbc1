"""Weights as they are, in plain rows on any device: what a graphics card multiplies by.

Paper      none.
Equation   y = x W^T.
Shapes     W [out, in] on `device`; x [rows, in]; y [rows, out], in `dtype` (head: float32).
Guarantee  exact: the stored values rounded once to the format's own type. On CUDA a row's result may depend in its last bits on the number of rows.
Cost       2 or 4 bytes a weight. A matrix is decoded on the host, a few rows at a time, and sent over whole: one matrix of host memory.
Choose     on CUDA, always. On the CPU Bf16 is packed for its kernels, and faster.
Differs    DenseDeviceHead leaves the sums in float32, where the card's product can: two near logits stay apart.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.weights.codes import dense_rows
from ponder.core.formats import LayerBody, LayerWeights, ModelConfig, PlainFormat, RawTensor
from ponder.native.rows import fuse

ERRORS = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class DeviceLinear:
    weight: Tensor

    unit: ClassVar[int] = 1

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None) -> "DeviceLinear":
        weight = self.weight if rows is None else self.weight[rows]
        return DeviceLinear(weight if columns is None else weight[:, columns].contiguous())


@dataclass(frozen=True)
class DeviceHead:
    weight: Tensor

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def apply(self, x: Tensor) -> Tensor:
        """float32 [rows, out]: products of the rounded numbers, summed and left in float32."""
        if x.is_cuda and x.dtype != torch.float32:
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return F.linear(x.float(), self.weight.float())


@dataclass(frozen=True, kw_only=True)
class DenseDevice(PlainFormat):
    """Plain rows in `dtype` on `device`."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"dense-{str(self.dtype).removeprefix('torch.')}"

    @property
    def error(self) -> float:
        return ERRORS[self.dtype]

    def pack(self, parts: tuple[RawTensor, ...]) -> DeviceLinear:
        return DeviceLinear(rows_on(parts, self.dtype, self.device))

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return fuse(layer, config, self.device)


@dataclass(frozen=True, kw_only=True)
class DenseDeviceHead(PlainFormat):
    """Plain rows in `dtype` on `device`, float32 out. For the output head."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"dense-{str(self.dtype).removeprefix('torch.')}-head"

    @property
    def error(self) -> float:
        return ERRORS[self.dtype]

    def pack(self, parts: tuple[RawTensor, ...]) -> DeviceHead:
        return DeviceHead(rows_on(parts, self.dtype, self.device))


def rows_on(parts: tuple[RawTensor, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[sum of out_features, in_features] of all parts in `dtype`, on `device`."""
    stacked = torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=dtype, device=device)
    at = 0
    for rows in dense_rows(parts):
        stacked[at : at + len(rows)] = rows.to(device)
        at += len(rows)
    return stacked
