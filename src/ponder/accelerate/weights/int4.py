"""Four bits a weight, a scale and a zero for every 32 of a row: the blocks of Q4_0 and Q4_1 files, as they are.

Paper      none; the block formats of GGUF, and the group-wise kernel of GPTQ-style weights.
Equation   w = (code - 8) * scale + zero. Q4_0: scale = d, zero = 0. Q4_1 (w = d code + m): scale = d, zero = m + 8 d.
Shapes     code [out, in], two to a byte; scale and zero bfloat16 [in / 32, out, 2].
Guarantee  approximate: at most `error` of the row's largest weight, per weight. Stored blocks only lose the rounding of scale and zero to bfloat16.
Cost       0.625 bytes a weight: the fastest format for up to about 8 rows on a CPU.
Choose     one or a few sequences, or where memory is short.
Differs    other storage types are quantised here by the range of each group, without calibration data.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.errors import Unsupported
from ponder.core.formats import LayerBody, LayerWeights, ModelConfig, RawTensor

GROUP = 32  # weights that share a scale
CHUNK = 2048  # rows decoded to float32 at a time
HEADER_BYTES = {"Q4_0": 2, "Q4_1": 4}  # float16 d, then float16 m; 16 bytes of codes follow


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
class Int4:
    """Weight-only int4 in groups of 32."""

    name: str = "int4"
    error: float = 0.08  # half of one of 15 steps over a group's range, which is at most twice the row's largest weight

    def pack(self, parts: tuple[RawTensor, ...]) -> Int4Linear:
        """Raises Unsupported when in_features is no multiple of 32 or the rows together no multiple of 16."""
        num_rows, width = sum(part.shape[0] for part in parts), parts[0].shape[1]
        if width % GROUP or num_rows % 16:
            raise Unsupported(f"int4 weights: {parts[0].name} is [{num_rows}, {width}]; rows must be a multiple of 16, columns of {GROUP}")
        blocks = [block for part in parts for block in groups(part)]
        codes = torch.cat([codes for codes, _, _ in blocks])
        scale_zero = torch.stack([torch.cat([s for _, s, _ in blocks]), torch.cat([z for _, _, z in blocks])], -1)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
        return Int4Linear(packed, scale_zero.transpose(0, 1).contiguous())

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return None


def groups(part: RawTensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(codes uint8 [rows, in], scales, zeros bfloat16 [rows, in / 32]) of some rows at a time."""
    if part.kind in HEADER_BYTES:
        return [unpack(part.blocks(), part.kind)]
    return [quantise(part.dense(start, min(start + CHUNK, part.shape[0]))) for start in range(0, part.shape[0], CHUNK)]


def unpack(raw: np.ndarray, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of stored blocks, uint8 [rows, bytes per row]. A byte holds weights j (low) and j + 16."""
    header = HEADER_BYTES[kind]
    blocks = np.ascontiguousarray(raw).reshape(raw.shape[0], -1, header + GROUP // 2)
    numbers = torch.from_numpy(np.ascontiguousarray(blocks[..., :header]).view(np.float16).astype(np.float32))
    nibbles = torch.from_numpy(np.ascontiguousarray(blocks[..., header:]))
    codes = torch.cat([nibbles & 15, nibbles >> 4], -1).reshape(raw.shape[0], -1)
    scales = numbers[..., 0]
    zeros = numbers[..., 1] + 8 * scales if kind == "Q4_1" else torch.zeros_like(scales)
    return codes, scales.bfloat16(), zeros.bfloat16()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros that span the range of each group of float32 [rows, in]."""
    grouped = weight.view(len(weight), -1, GROUP)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    scales = ((high - low) / 15).clamp(min=1e-12).bfloat16()
    zeros = (low + 8 * scales.float()).bfloat16()
    codes = ((grouped - zeros.float()) / scales.float() + 8).round_().clamp_(0, 15)
    return codes.to(torch.uint8).view_as(weight), scales[..., 0], zeros[..., 0]
