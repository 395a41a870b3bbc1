"""Eight bits a weight, one scale a row; for the output head with float32 results.

Paper      LLM.int8 (Dettmers et al. 2022), the absmax row scale without its outlier split; the head splits activations as Ozaki et al. 2012 do
Equation   code = round(w / scale), scale = max|w| / 127 over the row; y = scale * (x code^T).
           Int8Head: s = max|x| / 127, x / s = hi + lo / 254 with hi, lo integers in [-127, 127]; y = s scale (hi code^T + lo code^T / 254)
Shapes     code int8 [out, in], scale [out]; x bfloat16 [rows, in] -> y [rows, out], bfloat16 (Int8) or float32 (Int8Head)
Guarantee  approximate: at most `error` of the row's largest weight, per weight; Int8Head keeps 15 bits of the activations
Cost       1 byte a weight. Int8 accumulates in float32; Int8Head makes one integer product of twice the rows
Choose     Int8 where int4 is too coarse and sequences are few. Int8Head for the head of quantised models: twice as fast as Bf16Head, half its bytes
Differs    Int8 rounds the scale to bfloat16 before it makes the codes, so that its rounding costs nothing. Integer sums are exact, in any order
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.accelerate.weights.codes import row_codes
from ponder.core.formats import PlainFormat, RawTensor

PACKED_ROWS = 16  # number of input rows that the packed head is tuned for
FINE = 254  # steps of the second activation term in one of the first


@dataclass(frozen=True)
class Int8Linear:
    codes: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm.default(x, self.codes, self.scales)


@dataclass(frozen=True, kw_only=True)
class Int8(PlainFormat):
    """Weight-only int8 with a scale per row."""

    name: str = "int8"
    error: float = 0.008  # half a step, 1/254, and what the clamp at 127 adds when the scale rounds down

    def pack(self, parts: tuple[RawTensor, ...]) -> Int8Linear:
        return Int8Linear(*row_codes(parts, torch.bfloat16))


@dataclass(frozen=True)
class Int8HeadLinear:
    packed: Tensor  # opaque oneDNN layout
    scales: Tensor  # float32 [out]
    zeros: Tensor  # int32 [out]; the weights have no zero point, the kernel wants one
    nbytes: int

    def apply(self, x: Tensor) -> Tensor:
        """float32 [rows, out]."""
        x_scale = x.float().abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
        scaled = x.float() / x_scale
        coarse = scaled.round()
        fine = ((scaled - coarse) * FINE).round_()
        terms = torch.cat([coarse, fine]).add_(128).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise.default(
            terms, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y[: len(x)].add_(y[len(x) :], alpha=1 / FINE).mul_(x_scale)


@dataclass(frozen=True, kw_only=True)
class Int8Head(PlainFormat):
    """Weight int8 with a scale per row, activations in two int8 terms, float32 out. For the output head."""

    name: str = "int8-head"
    error: float = 0.005  # half a step, 1/254, and the activations' last bit

    def pack(self, parts: tuple[RawTensor, ...]) -> Int8HeadLinear:
        codes, scales = row_codes(parts, torch.float32)
        packed = torch.ops.onednn.qlinear_prepack(codes, [PACKED_ROWS, codes.shape[1]])
        return Int8HeadLinear(packed, scales, torch.zeros(len(codes), dtype=torch.int32), codes.nbytes + 8 * len(codes))
