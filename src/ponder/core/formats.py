"""What weights are before and after packing: the seam between model files, weight formats and the decoder."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and flags of a decoder. One config for all families; a family is a setting of the flags."""

    arch: str  # family name as the file has it: "llama", "qwen2"
    num_layers: int
    dim: int  # width of the residual stream
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context_len: int
    norm_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...] | None = None  # head_dim/2 divisors of the rotary frequencies (Llama 3 scaling)
    is_qkv_biased: bool = False  # Qwen2
    is_head_tied: bool = False  # output head is the embedding
    attn_softcap: float | None = None  # scores s become softcap * tanh(s / softcap) before the mask (Gemma 2)
    windows: tuple[int | None, ...] = ()  # per layer, None: sees everything; empty: no layer has one

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer: a query at position p sees keys at positions > p - window (and <= p). None: all."""
        return self.windows[layer] if self.windows else None


class RawTensor(Protocol):
    """One tensor as the file holds it: nothing is decoded until asked for.

    kind is the storage type ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"). Rows are
    already in the order that the decoder uses (rotary halves, not interleaved pairs).
    """

    name: str
    shape: tuple[int, ...]  # (out_features, in_features) for a matrix
    kind: str

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start:stop as float32. Never holds more than those rows in float32."""
        ...

    def blocks(self) -> np.ndarray:
        """The raw storage as uint8 [out_features, bytes per row]; a view of the file where the order allows."""
        ...


class Linear(Protocol):
    """A packed matrix. `apply` maps [rows, in_features] -> [rows, out_features], both bfloat16 unless the format says
    float32; row i of the result depends on row i of the input alone, bit for bit."""

    nbytes: int

    def apply(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of one layer, matrices packed. Norms are float32 [D]; qkv is q, k, v stacked by rows, gate_up gate, up.

    A field with a default is None in most families; who computes a layer honours every field that is set.
    """

    attn_norm: Tensor
    qkv: Linear
    qkv_bias: Tensor | None
    o: Linear
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear


class LayerBody(Protocol):
    """What one layer computes around its attention. x_TD is the float32 residual stream [T, D]; row i of every result depends
    on row i of the arguments alone, bit for bit where the weight format keeps that promise."""

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, E], k [T, K, E] (both rotated) and v [T, K, E] in the activation dtype. Leaves x_TD as it is.

        cos, sin: float32 [T, 1, E], both halves, the first half of sin negated: rotated = x cos + swapped halves of x sin.
        """
        ...

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        """The residual stream after the layer, given what its attention read, [T, H * E] in the activation dtype.

        May reuse the storage of x_TD; what `before` returned is no longer needed.
        """
        ...


class WeightFormat(Protocol):
    """Packs matrices. `error` is the largest relative error of one weight row that packing may add (0 for dense)."""

    name: str
    error: float

    def pack(self, parts: tuple[RawTensor, ...]) -> Linear:
        """One matrix from parts stacked by rows (q, k, v fused; gate, up fused). All parts share in_features."""
        ...

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        """The whole layer computed by this format itself; None: the plain PyTorch body does it, matrix by matrix.

        Must give None for weights or settings of `config` that its body does not honour. The attention scale is always
        1 / sqrt(head_dim): a body folds any other one into q. Windows and attn_softcap are attention's business.
        """
        ...


class Checkpoint(Protocol):
    """An opened model file. Tensor names: embed, norm, head (absent when tied) and, for layer i, layers.{i}.attn_norm,
    .q .k .v .o (.q.bias .k.bias .v.bias when biased), .ffn_norm, .gate, .up, .down."""

    config: ModelConfig
    model_id: str  # hash of what makes the model: equal only for equal weights and tokenizer

    def tensor(self, name: str) -> RawTensor: ...


class Tokenizer(Protocol):
    """Text <-> ids, with the model's own chat template. Pure after loading."""

    vocab_size: int
    eos_ids: frozenset[int]  # ids that end a completion
    pieces: tuple[bytes, ...]  # the bytes that each id stands for; empty for control tokens

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of `text`, with no bos added. parse_special: names of special tokens in the text become those tokens."""
        ...

    def decode(self, ids: list[int]) -> str: ...

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        """Ids of a conversation up to the point where the assistant's reply begins (bos included), then `prefill`.

        A single message of role "raw" is encoded as it is (bos added where the model's own tokenizer adds one).
        """
        ...
