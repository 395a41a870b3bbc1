"""Four bits a weight whatever the file stores, multiplied by compiled integer kernels with activations of 8 bits.

Paper      none; the block format Q4_1 of GGUF, filled by the range of each group.
Equation   w = s u + m, u in 0 .. 15, s = (max - min) / 15 and m = min of a group of 32 with zero. The product: see native.py
Shapes     codes u [blocks of 16 outputs, in / 32, 512 codes], scales s and minima m float16; x [rows, in] -> y [rows, out] bfloat16
Guarantee  approximate: at most `error` of the row's largest weight, per weight. Q4_0 and Q4_1 exactly as stored.
Cost       0.625 bytes a weight: the fewest bytes, so the fastest for one sequence.
Choose     one sequence of a model stored in more bits, where its answers bear the loss. Else `native`, which keeps what the file has.
Differs    no calibration data and no search for better ranges.
"""

from dataclasses import dataclass

from ponder.core.formats import LayerBody, LayerWeights, Linear, ModelConfig, PlainFormat, RawTensor, WeightFormat
from ponder.native.build import library
from ponder.native.layer import fuse
from ponder.native.matrix import pack_linear


@dataclass(frozen=True, kw_only=True)
class Native4(PlainFormat):
    """Weights in groups of 32, 4 bits; `fallback` where the kernels are absent."""

    fallback: WeightFormat

    @property
    def name(self) -> str:
        return "native4" if library() else self.fallback.name

    @property
    def error(self) -> float:
        """Half of one of 15 steps over a group's range, which is at most twice the row's largest weight, and the rounding of the result."""
        return 0.07 if library() else self.fallback.error

    def pack(self, parts: tuple[RawTensor, ...]) -> Linear:
        return pack_linear(parts, (4,) * len(parts)) if library() else self.fallback.pack(parts)

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return fuse(layer, config)
