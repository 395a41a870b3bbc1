"""ModelConfig from a GGUF file's metadata or from the config.json of a Hugging Face folder.

A setting that changes the computation and that the decoder does not honour is refused by name, never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ponder.core.errors import BadModelFile, Unsupported
from ponder.core.formats import ModelConfig

GGUF_ARCHS = ("llama", "qwen2")
HF_ARCHS = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
MAX_SIZE = 1 << 31
# GGUF keys that other decoders honour, with the value at which they change nothing
GGUF_NEUTRAL = {
    "expert_count": 0, "attention.scale": 0.0, "logit_scale": 0.0, "embedding_scale": 0.0, "residual_scale": 0.0,
    "attention.sliding_window": 0, "attention.causal": True, "use_parallel_residual": False, "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0, "attention.clamp_kqv": 0.0, "rope.scale_linear": 1.0, "pooling_type": 0,
}  # fmt: skip
HF_NEUTRAL = {
    "hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False, "partial_rotary_factor": 1.0, "quantization_config": None,
}  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """Typed reads of a mapping that came from a file; every complaint names the file and the key."""

    source: str
    values: Mapping[str, object]
    prefix: str = ""

    def size(self, key: str, default: int | None = None) -> int:
        """A positive int below 2^31. Raises BadModelFile for anything else, or when it is missing without a default."""
        value = self.values.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {_short(value)}; must be a positive integer")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BadModelFile(f"{self.source}: {self.prefix}{key} is {_short(value)}; must be a positive number")
        return float(value)

    def refuse(self, neutral: Mapping[str, object]) -> None:
        """Raises Unsupported for a key of `neutral` with a value other than its neutral one (or null)."""
        for key, harmless in neutral.items():
            value = self.values.get(self.prefix + key)
            if value is not None and not _is_equal(value, harmless):
                raise Unsupported(f"{self.source}: {self.prefix}{key} = {_short(value)} is not supported")


def gguf_config(source: str, metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], factors: tuple[float, ...] | None) -> ModelConfig:
    """Config of a GGUF file. shapes: of all its tensors; factors: content of rope_freqs.weight. Raises BadModelFile, Unsupported."""
    arch = metadata.get("general.architecture")
    if arch not in GGUF_ARCHS:
        raise Unsupported(f"{source}: architecture {_short(arch)} is not supported; supported are {', '.join(GGUF_ARCHS)}")
    fields = Fields(source, metadata, f"{arch}.")
    fields.refuse(GGUF_NEUTRAL)
    dim, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", dim // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.size(key, head_dim) != head_dim:
            raise Unsupported(f"{source}: {arch}.{key} = {fields.size(key)} differs from the head size {head_dim}")
    config = ModelConfig(
        arch=str(arch),
        num_layers=fields.size("block_count"),
        dim=dim,
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=fields.size("feed_forward_length"),
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        context_len=fields.size("context_length"),
        norm_eps=fields.positive("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.positive("rope.freq_base", 10000.0),
        rope_factors=_gguf_factors(fields, head_dim, factors),
        is_qkv_biased=arch == "qwen2" or "blk.0.attn_q.bias" in shapes,
        is_head_tied="output.weight" not in shapes,
    )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != config.vocab_size:
        raise BadModelFile(f"{source}: the tokenizer has {len(tokens)} tokens, but token_embd.weight has {config.vocab_size} rows")
    return _check(source, config)


def hf_config(source: str, values: Mapping[str, object], names: frozenset[str]) -> ModelConfig:
    """Config of a Hugging Face folder. values: its config.json; names: of all its tensors. Raises BadModelFile, Unsupported."""
    archs = values.get("architectures")
    arch = HF_ARCHS.get(archs[0]) if isinstance(archs, list) and len(archs) == 1 and isinstance(archs[0], str) else None
    if arch is None:
        raise Unsupported(f"{source}: architectures {_short(archs)} are not supported; supported are {', '.join(HF_ARCHS)}")
    fields = Fields(source, values)
    fields.refuse(HF_NEUTRAL)
    dim, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", dim // heads) if values.get("head_dim") is not None else dim // heads
    theta, factors = _hf_rope(source, values, head_dim)
    config = ModelConfig(
        arch=arch,
        num_layers=fields.size("num_hidden_layers"),
        dim=dim,
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn_dim=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        context_len=fields.size("max_position_embeddings"),
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factors=factors,
        is_qkv_biased=arch == "qwen2" or "model.layers.0.self_attn.q_proj.bias" in names,
        is_head_tied=values.get("tie_word_embeddings", False) is True,
    )
    return _check(source, config)


def llama3_factors(head_dim: int, theta: float, scaling: Fields) -> tuple[float, ...]:
    """head_dim/2 divisors of the rotary frequencies: 1 for short waves, `factor` for long ones, smooth between.

    Source: rope_type "llama3" of Llama 3.1; a wave is long when fewer than low_freq_factor of it fit the old context.
    """
    factor, old = scaling.positive("factor"), scaling.positive("original_max_position_embeddings")
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if not low < high:
        raise BadModelFile(f"{scaling.source}: low_freq_factor {low} must be below high_freq_factor {high}")
    divisors = []
    for i in range(head_dim // 2):
        waves = old * theta ** (-2 * i / head_dim) / (2 * math.pi)  # of this frequency in the old context
        smooth = min(1.0, max(0.0, (waves - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


def _gguf_factors(fields: Fields, head_dim: int, factors: tuple[float, ...] | None) -> tuple[float, ...] | None:
    kind = fields.values.get(fields.prefix + "rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise Unsupported(f"{fields.source}: rope scaling {_short(kind)} is not supported; none, linear and rope_freqs.weight are")
    linear = fields.positive("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    if factors is None:
        return None if linear == 1.0 else (linear,) * (head_dim // 2)
    if len(factors) != head_dim // 2 or not all(0 < f < math.inf for f in factors):
        raise BadModelFile(f"{fields.source}: rope_freqs.weight must hold {head_dim // 2} positive numbers, it holds {len(factors)}")
    return tuple(linear * f for f in factors)


def _hf_rope(source: str, values: Mapping[str, object], head_dim: int) -> tuple[float, tuple[float, ...] | None]:
    """(theta, factors), from the older rope_theta and rope_scaling or the newer rope_parameters."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise BadModelFile(f"{source}: rope scaling is {_short(scaling)}; must be an object")
    inner = Fields(source, scaling)
    inner.refuse({"partial_rotary_factor": 1.0})
    theta = inner.positive("rope_theta") if "rope_theta" in scaling else Fields(source, values).positive("rope_theta", 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, (inner.positive("factor"),) * (head_dim // 2)
    if kind == "llama3":
        return theta, llama3_factors(head_dim, theta, inner)
    raise Unsupported(f"{source}: rope scaling {_short(kind)} is not supported; default, linear and llama3 are")


def _check(source: str, config: ModelConfig) -> ModelConfig:
    if config.head_dim < 2 or config.head_dim % 2 or config.num_heads % config.num_kv_heads:
        heads = f"{config.num_heads} heads of size {config.head_dim}, {config.num_kv_heads} key heads"
        raise BadModelFile(f"{source}: {heads}; the size must be even, and the heads shared evenly")
    return config


def _is_equal(value: object, harmless: object) -> bool:
    return isinstance(value, int | float | str) and value == harmless


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
