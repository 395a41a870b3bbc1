"""Weights as they are, in float32 or in bfloat16.

Paper      none.
Equation   y = x W^T.
Shapes     W [out, in]; x [rows, in]; y [rows, out].
Guarantee  exact: the stored values rounded once to the format's own type.
Cost       4 or 2 bytes a weight. bfloat16 is packed once into oneDNN's blocked layout, 1.2 to 3.5 times the speed of the plain call.
Choose     Bf16 for 16 or more sequences at once; Float32 where a test wants an oracle. For one sequence int4 is faster: its bytes are fewer.
Differs    Bf16Head returns float32: one more product yields what rounding to bfloat16 lost, so that two near logits stay apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.accelerate.weights.codes import dense_rows
from ponder.core.formats import PlainFormat, RawTensor


def stack_rows(parts: tuple[RawTensor, ...], dtype: torch.dtype) -> Tensor:
    """[sum of out_features, in_features] of all parts in `dtype`, decoded a few rows at a time."""
    stacked = torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=dtype)
    at = 0
    for rows in dense_rows(parts):
        stacked[at : at + len(rows)] = rows
        at += len(rows)
    return stacked


def two_rows(x: Tensor) -> Tensor:
    """`x`, a single row doubled: oneDNN sums one row of more than 1,024 columns in another order than two."""
    return x if len(x) != 1 else x.repeat(2, 1)


def by_few_rows(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """apply(x), MOST_ROWS rows at a time."""
    return apply(x) if len(x) <= MOST_ROWS else torch.cat([apply(some) for some in x.split(MOST_ROWS)])


def chosen(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A copy of some rows or columns."""
    weight = weight if rows is None else weight[rows]
    return (weight if columns is None else weight[:, columns]).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class PlainLinear:
    weight: Tensor

    unit: ClassVar[int] = 1

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight)

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None) -> "PlainLinear":
        return PlainLinear(chosen(self.weight, rows, columns))


@dataclass(frozen=True)
class PackedLinear:
    packed: Tensor  # opaque oneDNN layout
    nbytes: int

    unit: ClassVar[int] = 1

    def apply(self, x: Tensor) -> Tensor:
        return by_few_rows(self._product, x)

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None) -> "PackedLinear":
        return packed(chosen(self._product(torch.eye(self.packed.shape[1], dtype=torch.bfloat16)).T, rows, columns))

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(two_rows(x), self.packed, None, "none", [], "")[: len(x)]


def packed(weight: Tensor) -> PackedLinear:
    return PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS), weight.nbytes)


@dataclass(frozen=True)
class PackedHead:
    packed: Tensor  # opaque oneDNN layout
    nbytes: int

    def apply(self, x: Tensor) -> Tensor:
        """float32 [rows, out]: the rounded product plus the rounded rest of it, together good to 16 bits."""
        return by_few_rows(self._product, x)

    def _product(self, x: Tensor) -> Tensor:
        x, num_rows = two_rows(x), len(x)
        y = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, None, "none", [], "")
        rest = torch.ops.mkldnn._linear_pointwise.binary(x, y, self.packed, None, "sub")
        return y.float().add_(rest)[:num_rows]


@dataclass(frozen=True, kw_only=True)
class Float32(PlainFormat):
    """Plain float32. Row results vary by 1e-7 with the number of rows: not for reproducible sampling."""

    name: str = "float32"
    error: float = 0.0

    def pack(self, parts: tuple[RawTensor, ...]) -> PlainLinear:
        return PlainLinear(stack_rows(parts, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Bf16(PlainFormat):
    """bfloat16 in oneDNN's layout."""

    name: str = "bf16"
    error: float = 2.0**-8

    def pack(self, parts: tuple[RawTensor, ...]) -> PackedLinear:
        return packed(stack_rows(parts, torch.bfloat16))


@dataclass(frozen=True, kw_only=True)
class Bf16Head(PlainFormat):
    """bfloat16 in oneDNN's layout, float32 out. For the output head."""

    name: str = "bf16-head"
    error: float = 2.0**-8

    def pack(self, parts: tuple[RawTensor, ...]) -> PackedHead:
        weight = stack_rows(parts, torch.bfloat16)
        return PackedHead(torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS), weight.nbytes)


PACKED_ROWS = 16  # number of input rows that the packed layout is tuned for
MOST_ROWS = 32 if torch.cpu._is_amx_tile_supported() else 1 << 30  # of one product: with matrix registers, oneDNN sums more rows in other orders
