"""Eight bits a weight whatever the file stores, multiplied by compiled integer kernels with activations of 8 bits.

Paper      none; the block format Q8_0 of GGUF.
Equation   w = s (u - 128), u in 1 .. 255, s = max|w| / 127 of a group of 32. The product: see native.py
Shapes     codes u [blocks of 16 outputs, in / 32, 512 codes], scales s float16; x [rows, in] -> y [rows, out] bfloat16
Guarantee  approximate: at most `error` of the row's largest weight, per weight. Kinds of at most 8 bits but Q6_K exactly as `native` has them.
Cost       1.06 bytes a weight; as fast as 4 bits from about 16 rows up, where arithmetic counts and bytes do not.
Choose     files in F16 or BF16, or to see what the activations' rounding alone does.
"""

from dataclasses import dataclass

from ponder.core.formats import LayerBody, LayerWeights, Linear, ModelConfig, PlainFormat, RawTensor, WeightFormat
from ponder.native.build import library
from ponder.native.layer import fuse
from ponder.native.matrix import pack_linear


@dataclass(frozen=True, kw_only=True)
class Native8(PlainFormat):
    """Weights in groups of 32, 8 bits; `fallback` where the kernels are absent."""

    fallback: WeightFormat

    @property
    def name(self) -> str:
        return "native8" if library() else self.fallback.name

    @property
    def error(self) -> float:
        """Half a step, 1/254, what the rounded scale clips, and the rounding of the result to bfloat16."""
        return 0.0065 if library() else self.fallback.error

    def pack(self, parts: tuple[RawTensor, ...]) -> Linear:
        return pack_linear(parts, (8,) * len(parts)) if library() else self.fallback.pack(parts)

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return fuse(layer, config)
