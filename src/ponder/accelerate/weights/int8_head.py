"""Eight bits a weight for the output head, activations as two int8 terms: integer products, float32 out.

Paper      none; the activation split is that of error-free transformations (Ozaki et al. 2012), with two terms
Equation   s = max|x| / 127, x / s = hi + lo / 254 with hi, lo integers in [-127, 127]; y = s scale (hi code^T + lo code^T / 254)
Shapes     code int8 [out, in], scale float32 [out]; x bfloat16 [rows, in] -> y float32 [rows, out]
Guarantee  approximate: at most `error` of the row's largest weight, per weight; activations keep 15 bits
Cost       1 byte a weight and one pass over them, with the two terms as rows of one integer product
Choose     for the head of quantised models: 2 times as fast as Bf16Head and half its bytes. Bf16Head where the file is not quantised
Differs    sums of integers are exact, so a row's result cannot depend on the others
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.accelerate.weights.int8 import row_codes
from ponder.core.formats import RawTensor

PACKED_ROWS = 16  # number of input rows that the packed layout is tuned for
FINE = 254  # steps of the second term in one of the first


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
        y = torch.ops.onednn.qlinear_pointwise(
            terms, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y[: len(x)].add_(y[len(x) :], alpha=1 / FINE).mul_(x_scale)


@dataclass(frozen=True, kw_only=True)
class Int8Head:
    """Weight int8 with a scale per row, activations in two int8 terms, float32 out. For the output head."""

    name: str = "int8-head"
    error: float = 0.005  # half a step, 1/254, and the activations' last bit

    def pack(self, parts: tuple[RawTensor, ...]) -> Int8HeadLinear:
        codes, scales = row_codes(parts, torch.float32)
        packed = torch.ops.onednn.qlinear_prepack(codes, [PACKED_ROWS, codes.shape[1]])
        return Int8HeadLinear(packed, scales, torch.zeros(len(codes), dtype=torch.int32), codes.nbytes + 8 * len(codes))
