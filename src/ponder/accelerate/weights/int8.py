"""Eight bits a weight, one scale a row.

Paper      LLM.int8 (Dettmers et al. 2022), the absmax row scale without its outlier split.
Equation   code = round(w / scale), scale = max|w| / 127 over the row; y = scale * (x code^T).
Shapes     code int8 [out, in]; scale bfloat16 [out].
Guarantee  approximate: at most `error` of the row's largest weight, per weight.
Cost       1 byte a weight; the product is accumulated in float32.
Choose     few sequences, and accuracy matters more than speed; int4 is faster for one, Bf16 for 16 and more.
Differs    the scale is rounded to bfloat16 before the codes are made, so that its rounding costs nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.formats import RawTensor

CHUNK = 2048  # rows decoded to float32 at a time


@dataclass(frozen=True)
class Int8Linear:
    codes: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scales)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Weight-only int8 with a scale per row."""

    name: str = "int8"
    error: float = 0.008  # half a step, 1/254, and what the clamp at 127 adds when the scale rounds down

    def pack(self, parts: tuple[RawTensor, ...]) -> Int8Linear:
        return Int8Linear(*row_codes(parts, torch.bfloat16))


def row_codes(parts: tuple[RawTensor, ...], scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, in] and scales [rows] of all parts, stacked; decoded a few rows at a time."""
    blocks = [
        quantise(part.dense(start, min(start + CHUNK, part.shape[0])), scale_dtype) for part in parts for start in range(0, part.shape[0], CHUNK)
    ]
    return torch.cat([codes for codes, _ in blocks]), torch.cat([scales for _, scales in blocks])


def quantise(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 [rows, in] -> int8 codes [rows, in], scales [rows]. A row of zeros gets scale 1."""
    largest = weight.abs().amax(1)
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest)).to(scale_dtype)
    codes = (weight / scales.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales
