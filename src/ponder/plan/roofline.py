"""Floating-point operations and bytes of every operator of a forward pass, from the model's shape alone.

Source: the roofline model (Williams, Waterman, Patterson 2009); its use per operator, layer and phase as in LLM-Viewer (Yuan et al.
2024, section 2). A multiply and an add are two operations. Keys and values are those of the key heads, of which there may be fewer than
query heads; a layer with a window reads only that. Of a sparse layer's experts, tokens use `num_experts_used` each, and a pass reads
those that anyone of it uses. Activations are counted once, by the elementwise operators that read and write them: a matrix takes
them from the caches and leaves them there.

Shapes: T new tokens of a pass, D width, H query heads, K key heads, E head width, F ffn width, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig

ACTIVATION_BYTES = 2  # of keys, values and what matrices read and write
STREAM_BYTES = 4  # of the residual stream
GROUPS = ("qkv", "attention", "o", "gate_up", "down", "head", "norms/rope", "sampling", "python", "tokenizer")


@dataclass(frozen=True)
class Pass:
    """One forward pass: `new` tokens of each sequence after `before` others, and how many rows meet the output head."""

    new: tuple[int, ...]
    before: tuple[int, ...]
    num_logits: int

    def __post_init__(self) -> None:
        if not self.new or len(self.new) != len(self.before) or min(self.new) < 1 or min(self.before) < 0 or self.num_logits < 0:
            raise BadField(f"{self}: needs as many counts of tokens before as of new ones, which are at least 1")

    @property
    def num_tokens(self) -> int:
        return sum(self.new)

    @property
    def is_reading(self) -> bool:
        """Whether it reads prompts; a pass that also generates counts as one."""
        return max(self.new) > 1

    def keys_met(self, window: int | None) -> float:
        """Keys that all new tokens see together."""
        return float(sum(_keys_met(new, before, window) for new, before in zip(self.new, self.before)))

    def keys_read(self, window: int | None) -> float:
        """Keys that lie before or in the pass and are seen by somebody, each once."""
        return float(sum(new + before if window is None else min(new + before, new + window - 1) for new, before in zip(self.new, self.before)))


def _keys_met(new: int, before: int, window: int | None) -> int:
    if window is None or new + before <= window:
        return new * before + new * (new + 1) // 2
    short = max(0, min(new, window - before))  # tokens that the window does not bound yet
    return short * before + short * (short + 1) // 2 + (new - short) * window


def decode_pass(batch: int, context: int) -> Pass:
    """One new token for each of `batch` sequences, which then has `context` tokens. Raises BadField."""
    return Pass((1,) * _positive("batch", batch), (_positive("context", context) - 1,) * batch, batch)


def prefill_passes(batch: int, context: int, chunk: int) -> list[Pass]:
    """The passes that read `batch` prompts of `context` tokens one after the other, `chunk` tokens at a time. Raises BadField."""
    _positive("batch", batch), _positive("context", context), _positive("chunk", chunk)
    passes, total = [], batch * context
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        new, before, num_logits = [], [], 0
        for prompt in range(start // context, (stop - 1) // context + 1):
            first, last = max(start - prompt * context, 0), min(stop - prompt * context, context)
            new.append(last - first)
            before.append(first)
            num_logits += last == context
        passes.append(Pass(tuple(new), tuple(before), num_logits))
    return passes


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise BadField(f"{name}={value}: must be at least 1")
    return value


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of one layer (None: of none) in one pass. Bytes are those that must come from memory at least once."""

    name: str
    group: str
    layer: int | None
    flops: float
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    stream_bytes: float = 0.0  # activations read and written by what has no weights
    shape: tuple[int, int] | None = None  # (out, in) of a matrix
    rows: float = 0.0  # that meet the matrix
    copies: float = 1.0  # matrices of the shape that are used

    @property
    def nbytes(self) -> float:
        return self.weight_bytes + self.kv_bytes + self.stream_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / max(self.nbytes, 1.0)


@dataclass(frozen=True)
class Outline:
    """What a model is to the cost model: its shape, the formats of its matrices and head, and bytes per weight of each matrix by role."""

    config: ModelConfig
    weights: str
    head: str
    weight_nbytes: dict[str, float]  # bytes per weight of "qkv", "o", "gate_up", "down", "head"
    kv_nbytes: float = 2.0 * ACTIVATION_BYTES  # of a key and a value together, per element

    @property
    def name(self) -> str:
        """Weight format and size, which decide the factors of a machine."""
        return f"{self.weights} {self.config.num_layers}x{self.config.dim}"


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices of a layer by role and of the head; the ffn's are those of an expert where there are only experts."""
    ffn = config.ffn_dim if not all(config.is_sparse(i) for i in range(config.num_layers)) else config.expert_dim
    return {
        "qkv": ((config.num_heads + 2 * config.num_kv_heads) * config.head_dim, config.dim),
        "o": (config.dim, config.num_heads * config.head_dim),
        "gate_up": (2 * ffn, config.dim),
        "down": (config.dim, ffn),
        "head": (config.vocab_size, config.dim),
    }


def num_weights(config: ModelConfig, *, is_active: bool = False) -> int:
    """Weights in matrices, head and embedding (once where they are tied); is_active: only those that one token meets."""
    total = (1 if config.is_head_tied or is_active else 2) * config.vocab_size * config.dim
    shapes = matrix_shapes(config)
    for layer in range(config.num_layers):
        total += shapes["qkv"][0] * shapes["qkv"][1] + shapes["o"][0] * shapes["o"][1]
        if config.is_sparse(layer):
            num = config.num_experts_used if is_active else config.num_experts
            total += 3 * config.dim * (num * config.expert_dim + config.shared_expert_dim) + num_router_rows(config) * config.dim
        else:
            total += 3 * config.dim * config.ffn_dim
    return total


def num_router_rows(config: ModelConfig) -> int:
    return config.num_experts + (config.shared_expert_dim > 0)


def num_experts_met(config: ModelConfig, num_tokens: int) -> float:
    """Experts that some of the tokens use, on average over choices that are independent and even: N (1 - (1 - U / N)^T)."""
    num, used = config.num_experts, config.num_experts_used
    return num * (1.0 - (1.0 - used / num) ** num_tokens)


def operators(outline: Outline, passed: Pass) -> list[Operator]:
    """All operators of a pass, in the order in which they run; not the sampler's, which are no part of the model."""
    config, num = outline.config, passed.num_tokens
    found = [_stream("embed", None, num * config.dim * (ACTIVATION_BYTES + STREAM_BYTES), num * config.dim)]
    for layer in range(config.num_layers):
        found += _layer_operators(outline, passed, layer)
    found.append(_stream("final norm", None, num * config.dim * (STREAM_BYTES + ACTIVATION_BYTES), 4 * num * config.dim))
    if passed.num_logits:
        found.append(matrix(outline, "head", None, (config.vocab_size, config.dim), rows=passed.num_logits))
    return found


def _layer_operators(outline: Outline, passed: Pass, layer: int) -> Iterable[Operator]:
    config, num = outline.config, passed.num_tokens
    shapes = matrix_shapes(config)
    yield elementwise(outline, passed, layer)
    yield matrix(outline, "qkv", layer, shapes["qkv"], rows=num)
    yield attention(outline, passed, layer)
    yield matrix(outline, "o", layer, shapes["o"], rows=num)
    if not config.is_sparse(layer):
        yield matrix(outline, "gate_up", layer, (2 * config.ffn_dim, config.dim), rows=num)
        yield matrix(outline, "down", layer, (config.dim, config.ffn_dim), rows=num)
        return
    met = num_experts_met(config, num)
    rows = num * config.num_experts_used / met
    router = num_router_rows(config) * config.dim
    yield Operator(name="router", group="gate_up", layer=layer, flops=2.0 * num * router, weight_bytes=4.0 * router)
    yield matrix(outline, "gate_up", layer, (2 * config.expert_dim, config.dim), rows=rows, copies=met)
    yield matrix(outline, "down", layer, (config.dim, config.expert_dim), rows=rows, copies=met)
    if config.shared_expert_dim:
        yield matrix(outline, "gate_up", layer, (2 * config.shared_expert_dim, config.dim), rows=num)
        yield matrix(outline, "down", layer, (config.dim, config.shared_expert_dim), rows=num)


def matrix(outline: Outline, role: str, layer: int | None, shape: tuple[int, int], *, rows: float, copies: float = 1.0) -> Operator:
    """`copies` matrices of `shape`, each of which meets `rows` rows."""
    out, into = shape
    return Operator(
        name=role, group=role, layer=layer, flops=2.0 * copies * rows * out * into, weight_bytes=copies * out * into * outline.weight_nbytes[role],
        shape=shape, rows=rows, copies=copies,
    )  # fmt: skip


def attention(outline: Outline, passed: Pass, layer: int) -> Operator:
    """Scores and weighted values of every query head; keys and values of the key heads are read once and the new ones written."""
    config, window = outline.config, outline.config.window(layer)
    values = config.num_kv_heads * config.head_dim * (passed.keys_read(window) + passed.num_tokens)
    return Operator(
        name="attention", group="attention", layer=layer, flops=4.0 * config.num_heads * config.head_dim * passed.keys_met(window),
        kv_bytes=values * outline.kv_nbytes,
    )  # fmt: skip


def elementwise(outline: Outline, passed: Pass, layer: int) -> Operator:
    """Norms, rotations, residual sums and the activation: every value is read and written once by each, at about four operations."""
    config = outline.config
    stream = 2 * (config.has_pre_norms + config.has_post_norms + 1) * config.dim
    heads = (config.is_rotary(layer) + (config.qk_norm != "none")) * (config.num_heads + config.num_kv_heads) * config.head_dim
    ffn = config.num_experts_used * config.expert_dim + config.shared_expert_dim if config.is_sparse(layer) else config.ffn_dim
    values = passed.num_tokens * (stream + heads + 3 * ffn)
    return _stream("elementwise", layer, values * (STREAM_BYTES + ACTIVATION_BYTES), 4 * values)


def _stream(name: str, layer: int | None, nbytes: float, flops: float) -> Operator:
    return Operator(name=name, group="norms/rope", layer=layer, flops=float(flops), stream_bytes=float(nbytes))
