"""Four bits a weight, a scale and a zero for every 32 of a row: the blocks of Q4_0, Q4_1 and Q4_K files, as they are.

Paper      none; the block formats of GGUF, and the group-wise kernel of GPTQ-style weights.
Equation   w = (code - 8) * scale + zero. Q4_0: scale = d, zero = 0. Q4_1 (w = d code + m): scale = d, zero = m + 8 d.
           Q4_K (w = d s code - dmin m): scale = d s, zero = 8 d s - dmin m.
Shapes     code [out, in], two to a byte; scale and zero bfloat16 [in / 32, out, 2].
Guarantee  approximate: at most `error` of the row's largest weight, per weight. Stored blocks only lose the rounding of scale and zero to bfloat16.
Cost       0.625 bytes a weight: the fastest format for up to 4 rows on a CPU. Packing holds one matrix in bytes, never in float32.
Choose     one or a few sequences, or where memory is short.
Differs    other storage types are quantised here by the range of each group, without calibration data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.accelerate.weights.codes import GROUP, MAX_VALUES, groups
from ponder.core.errors import Unsupported
from ponder.core.formats import PlainFormat, RawTensor

KERNEL_ROWS = 64  # rows that the kernel's layout interleaves, or a multiple


@dataclass(frozen=True)
class Int4Linear:
    codes: Tensor  # opaque layout of the kernel
    scales: Tensor  # [in / 32, out, 2]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu.default(x, self.codes, GROUP, self.scales)


@dataclass(frozen=True, kw_only=True)
class Int4(PlainFormat):
    """Weight-only int4 in groups of 32."""

    name: str = "int4"
    error: float = 0.08  # half of one of 15 steps over a group's range, which is at most twice the row's largest weight

    def pack(self, parts: tuple[RawTensor, ...]) -> Int4Linear:
        """Raises Unsupported when in_features is no multiple of 32 or the rows together no multiple of 16."""
        num_rows, width = sum(part.shape[0] for part in parts), parts[0].shape[1]
        if width % GROUP or num_rows % 16:
            raise Unsupported(f"int4 weights: {parts[0].name} is [{num_rows}, {width}]; rows must be a multiple of 16, columns of {GROUP}")
        codes = torch.empty(num_rows, width, dtype=torch.uint8)
        scale_zero = torch.empty(width // GROUP, num_rows, 2, dtype=torch.bfloat16)
        at = 0
        for some in groups(parts):
            stop = at + len(some.codes)
            codes[at:stop], scale_zero[:, at:stop, 0], scale_zero[:, at:stop, 1] = some.codes, some.scales.T, some.zeros.T
            at = stop
        return Int4Linear(interleaved(codes), scale_zero)


def interleaved(codes: Tensor) -> Tensor:
    """The kernel's layout of uint8 codes [out, in]; it takes them as int32, so in steps of whole blocks of rows."""
    step = max(KERNEL_ROWS, MAX_VALUES // codes.shape[1] // KERNEL_ROWS * KERNEL_ROWS)
    packed = torch.empty(codes.shape[0], codes.shape[1] // 2, dtype=torch.uint8)
    for start in range(0, len(codes), step):
        packed[start : start + step] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes[start : start + step].to(torch.int32), 1)
    return packed
