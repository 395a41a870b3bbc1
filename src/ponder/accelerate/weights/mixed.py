"""Two copies of a matrix, and the number of rows chooses: int4 for few, bfloat16 for many, within a memory limit.

Paper      none.
Equation   y = few(x) below `switch_rows` rows, many(x) from there on; both of w = (code - 8) scale + zero, rounded to bfloat16 in the second.
Shapes     W [out, in]; x [rows, in] -> y [rows, out], both bfloat16.
Guarantee  approximate: int4's error, and the rounding to bfloat16 of each weight more where many rows meet. A row's result is the same bits in
           any company on one side of the switch; across it the results differ by at most 2^-7 of sum |x w|. Where no bit may depend on
           neighbours, take Int4 or Bf16.
Cost       0.625 bytes a weight, 2 more for each copy; at most `max_bytes` for the copies of a model, largest matrices first: they gain most per byte.
Choose     one server for single questions and for crowds, without a compiled kernel.
Differs    the switch is a constant, not calibrated at load: a timing would make results depend on the machine's mood. On two models'
           eight shapes int4 wins up to 4 rows (its kernel takes rows by fours); from 6 packed bfloat16 wins or is within a tenth
           (benchmarks/results/weight_formats.jsonl).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ponder.accelerate.weights.codes import groups_of
from ponder.core.errors import BadField
from ponder.core.formats import Linear, PlainFormat, RawTensor, WeightFormat

SWITCH_ROWS = 6


@dataclass(eq=False)
class MixedLinear:
    """A matrix for few rows; the copy for many is made when all matrices are known."""

    few: Linear
    switch_rows: int
    parts: tuple[RawTensor, ...]  # what the copy is made of, empty afterwards
    num_weights: int
    many: Linear | None = None

    @property
    def nbytes(self) -> int:
        return self.few.nbytes + (self.many.nbytes if self.many is not None else 0)

    def apply(self, x: Tensor) -> Tensor:
        return (self.few if self.many is None or len(x) < self.switch_rows else self.many).apply(x)


@dataclass(frozen=True)
class FourBitValues:
    """A RawTensor of the values that int4 gives to another."""

    raw: RawTensor
    kind: str = "groups"

    @property
    def name(self) -> str:
        return self.raw.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return groups_of(self.raw, start, self.shape[0] if stop is None else stop).dense()

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.dense(start, stop).numpy().view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Mixed(PlainFormat):
    """few: int4. many: a format for the same values."""

    few: WeightFormat
    many: WeightFormat
    max_bytes: int = 1 << 30  # of all copies of a model
    switch_rows: int = SWITCH_ROWS  # from so many rows on the copy multiplies
    error: float = 0.084  # int4's and the rounding to bfloat16

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise BadField(f"mixed weights: max_bytes is {self.max_bytes}; must be at least 0, which makes no copies")
        if self.switch_rows < 2:
            raise BadField(f"mixed weights: switch_rows is {self.switch_rows}; must be at least 2: for a copy that is always used, take its format")

    @property
    def name(self) -> str:
        """Differs where results do."""
        return f"mixed-{self.few.name}-{self.many.name}-{self.max_bytes}-{self.switch_rows}"

    def pack(self, parts: tuple[RawTensor, ...]) -> MixedLinear:
        """Raises Unsupported as `few` does."""
        num_weights = sum(part.shape[0] for part in parts) * parts[0].shape[1]
        return MixedLinear(self.few.pack(parts), self.switch_rows, tuple(map(FourBitValues, parts)), num_weights)

    def complete(self, matrices: Sequence[Linear]) -> None:
        """Gives matrices their copies, in order of size, as far as the limit reaches; the others stay as they are."""
        left = self.max_bytes
        for matrix in sorted((m for m in matrices if isinstance(m, MixedLinear)), key=lambda m: -m.num_weights):
            if 2 * matrix.num_weights <= left:
                matrix.many = self.many.pack(matrix.parts)
                left -= matrix.many.nbytes
            matrix.parts = ()
