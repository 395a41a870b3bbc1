"""Eight bits a weight and eight bits an activation: integer products, one scale a weight row and one an activation row.

Paper      LLM.int8 (Dettmers et al. 2022), its absmax vector-wise quantisation without the outlier split
Equation   s = max|x| / 127, q = floor(x / s + 128.5); y = s scale ((q - 128) code^T); code and scale as in Int8, scale float32
Shapes     code int8 [out, in], scale [out]; x bfloat16 [rows, in] -> y bfloat16 [rows, out]
Guarantee  approximate: weights to `error` of the row's largest, activations to 1/254 of theirs; 1.2 % of y on Gaussian x. Rows are independent
Cost       1 byte a weight, and six passes over x. Ahead of packed bfloat16 from about 64 rows where in_features are many
Choose     prefill and many sequences without a compiled kernel. Outliers in x coarsen a whole row: Int8 keeps them
Differs    x is rounded half up, not half to even. Product and sum are two roundings, so that no place in memory changes a row's codes
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.accelerate.weights.codes import row_codes
from ponder.core.formats import PlainFormat, RawTensor

PACKED_ROWS = 64  # number of input rows that the packed layout is tuned for


@dataclass(frozen=True)
class Int8DynamicLinear:
    packed: Tensor  # opaque oneDNN layout
    scales: Tensor  # float32 [out]
    zeros: Tensor  # int32 [out]; the weights have no zero point, the kernel wants one
    nbytes: int

    def apply(self, x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True, dtype=torch.float32).clamp_(min=1e-30)
        codes = (x * (127 / largest)).add_(128.5).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise.default(
            codes, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(largest.div_(127)).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(PlainFormat):
    """int8 weights with a scale per row, activations quantised as they come."""

    name: str = "int8-dynamic"
    error: float = 0.008  # half a step, 1/254, and the rounding of the result to bfloat16, 1/256

    def pack(self, parts: tuple[RawTensor, ...]) -> Int8DynamicLinear:
        codes, scales = row_codes(parts, torch.float32)
        packed = torch.ops.onednn.qlinear_prepack(codes, [PACKED_ROWS, codes.shape[1]])
        return Int8DynamicLinear(packed, scales, torch.zeros(len(codes), dtype=torch.int32), codes.nbytes + 8 * len(codes))
