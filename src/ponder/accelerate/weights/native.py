"""Weights as the file stores them, 4, 5 or 8 bits each, multiplied by compiled integer kernels with activations of 8 bits.

Paper      none; block formats of GGUF. Activations as in LLM.int8 (Dettmers et al. 2022), by group instead of by row.
Equation   y = sum over groups g of 32 of s_g t_g dot(u_g - zero, q_g) [ + m_g t_g sum(q_g) ]; x_g = t_g q_g, t_g = max|x_g| / 127, q_g rounded
Shapes     codes u [blocks of 16 outputs, in / 32, 512 codes], scales s and minima m float16; x [rows, in] -> y [rows, out], bfloat16 (head: float32)
Guarantee  approximate: Q4_0, Q5_0, Q8_0, Q4_1, Q5_1 exactly as stored; K kinds lose the rounding of scales to float16, at most 0.001 of the
           row's largest weight; all others (Q6_K, F16, BF16, F32) become 8 bits, at most `error`. Activations lose half a step of 127.
Cost       0.625, 0.69 (Q5_0) or 1.06 bytes a weight. Fastest on a CPU at any number of rows, where its kernels compile; a whole layer in two calls.
Choose     whenever the CPU has AVX-512 VNNI. Without: parts of 4 bits go to `narrow`, others to `wide`, and the name says so.
Differs    the activations' error is that of llama.cpp's Q8_0. Rows are each for themselves, bit for bit, whatever the rows, tiles and threads.
"""

from dataclasses import dataclass

import torch

from ponder.core.formats import Embedding, LayerBody, LayerWeights, Linear, ModelConfig, PlainFormat, RawTensor, WeightFormat
from ponder.native.build import library
from ponder.native.codes import stored_bits
from ponder.native.layer import fuse
from ponder.native.lookup import packed_rows
from ponder.native.matrix import pack_linear

ERROR = 0.0065  # half a step, 1/254, what the rounded scale clips, and the rounding of results to bfloat16


def bits_of(parts: tuple[RawTensor, ...]) -> tuple[int, ...]:
    return tuple(stored_bits(part.kind) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Native(PlainFormat):
    """Bits as stored. Where the kernels are absent it is `narrow` for parts of 4 bits and `wide` for the others."""

    narrow: WeightFormat
    wide: WeightFormat

    @property
    def name(self) -> str:
        return "native" if library() else f"{self.narrow.name}-or-{self.wide.name}"

    @property
    def error(self) -> float:
        return ERROR if library() else max(self.narrow.error, self.wide.error)

    def pack(self, parts: tuple[RawTensor, ...]) -> Linear:
        if library():
            return pack_linear(parts, bits_of(parts))
        return (self.narrow if max(bits_of(parts)) == 4 else self.wide).pack(parts)

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return fuse(layer, config)


@dataclass(frozen=True, kw_only=True)
class NativeHead(PlainFormat):
    """Bits as stored, float32 out. For the output head; `fallback` where the kernels are absent."""

    fallback: WeightFormat

    @property
    def name(self) -> str:
        return "native-head" if library() else self.fallback.name

    @property
    def error(self) -> float:
        return ERROR if library() else self.fallback.error

    def pack(self, parts: tuple[RawTensor, ...]) -> Linear:
        return pack_linear(parts, bits_of(parts), torch.float32) if library() else self.fallback.pack(parts)

    def lookup(self, matrix: Linear) -> Embedding | None:
        return packed_rows(matrix)
