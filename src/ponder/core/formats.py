"""What weights are before and after packing: the seam between model files, weight formats and the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

# settings of ModelConfig that change what a LayerBody computes, beyond shapes, biases and rotary tables
BODY_SETTINGS = ("qk_norm", "has_pre_norms", "has_post_norms", "activation", "query_scale", "num_experts")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and flags of a decoder. One config for all families; a family is a setting of the flags.

    Tuples "per layer" have num_layers entries, or none where all layers are alike.
    """

    arch: str  # family name as GGUF files have it: "llama", "qwen2"
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
    rope_factors: tuple[float, ...] | None = None  # rotary_dim/2 divisors of the rotary frequencies
    rope_scale: float = 1.0  # of cos and sin (YaRN, LongRoPE)
    rotary_dim: int | None = None  # leading part of each head that rotates; None: all of it
    rope_local_theta: float | None = None  # theta of layers with a window, which then have no factors (Gemma 3)
    rotary_layers: tuple[bool, ...] = ()  # per layer, False: no rotation (SmolLM3)
    long_rope_factors: tuple[float, ...] | None = None  # in place of rope_factors for a longer context (LongRoPE)
    long_context_len: int | None = None  # the context that long_rope_factors allow
    is_qkv_biased: bool = False  # Qwen2
    is_head_tied: bool = False  # output head is the embedding
    qk_norm: str = "none"  # norm of q and k before they rotate: "head" over each head (Qwen3), "row" over all heads (OLMo2)
    has_pre_norms: bool = True  # norms of what attention and ffn read
    has_post_norms: bool = False  # norms of what attention and ffn add to the stream (Gemma, OLMo2)
    activation: str = "silu"  # or "gelu": its tanh form (Gemma)
    embed_scale: float = 1.0
    query_scale: float = 1.0  # of q, for families whose attention scale is not 1 / sqrt(head_dim)
    attn_softcap: float | None = None  # scores s become softcap * tanh(s / softcap) before the mask (Gemma 2)
    head_softcap: float | None = None  # the same for the logits
    windows: tuple[int | None, ...] = ()  # per layer, None: sees everything; empty: no layer has one
    num_experts: int = 0
    num_experts_used: int = 0  # by each token
    expert_dim: int = 0  # ffn width of an expert
    shared_expert_dim: int = 0  # ffn width of the expert that every token uses; 0: none
    is_router_normed: bool = False  # weights of the experts used sum to 1
    sparse_layers: tuple[bool, ...] = ()  # per layer, False: a plain ffn; matters where there are experts

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer: a query at position p sees keys at positions > p - window (and <= p). None: all."""
        return self.windows[layer] if self.windows else None

    def is_rotary(self, layer: int) -> bool:
        """Whether q and k of a layer rotate."""
        return self.rotary_layers[layer] if self.rotary_layers else True

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's ffn is a choice of experts."""
        return self.num_experts > 0 and (self.sparse_layers[layer] if self.sparse_layers else True)

    @property
    def unusual(self) -> frozenset[str]:
        """Names in BODY_SETTINGS that are not as in Llama: what a fused LayerBody must honour or decline."""
        return frozenset(name for name in BODY_SETTINGS if getattr(self, name) != type(self).__dataclass_fields__[name].default)


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

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The raw storage of rows start:stop as uint8 [rows, bytes per row]: read from the file now, and the caller's own."""
        ...


class Linear(Protocol):
    """A packed matrix. `apply` maps [rows, in_features] -> [rows, out_features], both bfloat16 unless the format says
    float32; row i of the result depends on row i of the input alone, bit for bit."""

    nbytes: int

    def apply(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Divisible(Linear, Protocol):
    """A Linear of which a part can be had, as a matrix of its own."""

    unit: int  # neighbouring outputs or inputs that stay together: parts are of whole units

    def part(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Linear:
        """Of those outputs, or of those inputs (int64, ascending, whole units); None: all of them. Shares no memory with the whole."""
        ...


class Embedding(Protocol):
    """Rows that are looked up and never multiplied. nbytes: what it holds itself, beside what others hold."""

    nbytes: int

    def rows(self, tokens: Tensor) -> Tensor:
        """float32 [T, D] of tokens int64 [T], the caller's own. Raises IndexError for a token that has no row."""
        ...


@dataclass(frozen=True)
class FeedForward:
    """down(act(gate x) * up x)."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class ExpertWeights:
    """The ffn of a sparse layer. router: float32 [experts, D], and one more row for the shared expert where there is one."""

    router: Tensor
    experts: tuple[FeedForward, ...]
    shared: FeedForward | None


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of one layer, matrices packed. Norms are float32 [D]; qkv is q, k, v stacked by rows, gate_up gate, up.

    None is what the config says is not there; gate_up and down are None where there are experts.
    """

    attn_norm: Tensor | None
    qkv: Linear
    qkv_bias: Tensor | None
    o: Linear
    ffn_norm: Tensor | None
    gate_up: Linear | None
    down: Linear | None
    q_norm: Tensor | None = None  # [E] or [H * E]
    k_norm: Tensor | None = None  # [E] or [K * E]
    attn_post_norm: Tensor | None = None
    ffn_post_norm: Tensor | None = None
    experts: ExpertWeights | None = None


class LayerBody(Protocol):
    """What one layer computes around its attention. x_TD is the float32 residual stream [T, D]; row i of every result depends
    on row i of the arguments alone, bit for bit where the weight format keeps that promise.

    Tokens of a prompt go through `of_prompts`, another body of the same layer or this one: they come many at a time and may be
    worth other arithmetic. Which of the two a token meets is a matter of its place in its sequence.
    """

    @property
    def of_prompts(self) -> "LayerBody": ...

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

    def complete(self, matrices: Sequence[Linear]) -> None:
        """Called once for a model, with all that `pack` made for it, before any layer is fused."""
        ...

    def lookup(self, matrix: Linear) -> Embedding | None:
        """The rows of a matrix that `pack` made of one part, where they are the file's own bit for bit; None: they must be kept apart."""
        ...

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        """The whole layer computed by this format itself; None: the plain PyTorch body does it, matrix by matrix.

        Must give None where `config.unusual` names a setting that its body does not honour. The attention scale is always
        1 / sqrt(head_dim): a body multiplies q by query_scale. Windows and attn_softcap are attention's business.
        """
        ...


class PlainFormat:
    """What a WeightFormat answers that packs each matrix for itself, and leaves all else to the decoder."""

    def complete(self, matrices: Sequence[Linear]) -> None:
        return None

    def lookup(self, matrix: Linear) -> Embedding | None:
        return None

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return None


class Checkpoint(Protocol):
    """An opened model file. Tensor names: embed, norm, head (absent when tied) and, for layer i, layers.{i}. before

    attn_norm, ffn_norm (pre-norms), attn_post_norm, ffn_post_norm (post-norms), q_norm, k_norm (qk_norm), q, k, v, o,
    q.bias, k.bias, v.bias (biased), gate, up, down; in a sparse layer instead of the last three router [experts, dim],
    experts.{e}.gate .up .down and, with a shared expert, shared.router [dim], shared.gate .up .down.
    Norm weights multiply as they are (Gemma's 1 is added).
    """

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
