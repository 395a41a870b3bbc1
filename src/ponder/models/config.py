"""ModelConfig from a GGUF file's metadata or from the config.json of a Hugging Face folder.

A setting that changes the computation and that the decoder does not honour is refused by name, never ignored.
"""

import math
from collections.abc import Mapping

import numpy as np

from ponder.core.errors import BadModelFile, Unsupported
from ponder.core.formats import ModelConfig
from ponder.models.families import FAMILIES, HF_ARCHS, Family
from ponder.models.fields import Fields, short
from ponder.models.rope import gguf_rope, hf_rope

Shapes = Mapping[str, tuple[int, ...]]
Windows = tuple[int | None, ...]

MAX_EXPERTS = 4096
# GGUF keys that other decoders honour, with the value at which they change nothing
GGUF_NEUTRAL = {
    "logit_scale": 0.0, "embedding_scale": 0.0, "residual_scale": 0.0, "attention.causal": True, "use_parallel_residual": False,
    "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "rope.scale_linear": 1.0, "pooling_type": 0, "expert_group_count": 1,
    "router_logit_softcapping": 0.0, "nextn_predict_layers": 0, "leading_dense_block_count": 0, "attention.temperature_scale": 0.0,
}  # fmt: skip
HF_NEUTRAL = {"mlp_bias": False, "quantization_config": None, "clip_qkv": None, "use_bidirectional_attention": False}
HF_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
GEMMA_27B = {("gemma2.", 46), ("gemma3.", 62)}  # (prefix of keys, layers): GGUF files do not say that their scale is by dim / heads


def gguf_config(source: str, metadata: Mapping[str, object], shapes: Shapes, tables: Mapping[str, tuple[float, ...]]) -> ModelConfig:
    """Config of a GGUF file. Raises BadModelFile, Unsupported.

    shapes: of all its tensors; tables: numbers in its tensors rope_freqs, rope_factors_short and rope_factors_long.
    """
    arch = metadata.get("general.architecture")
    family = FAMILIES.get(arch) if isinstance(arch, str) else None
    if family is None:
        raise Unsupported(f"{source}: architecture {short(arch)} is not supported; supported are {', '.join(FAMILIES)}")
    fields = Fields(source, metadata, f"{arch}.")
    fields.refuse(GGUF_NEUTRAL)
    dim, heads, num_layers = fields.size("embedding_length"), fields.size("attention.head_count"), fields.size("block_count")
    head_dim = fields.size("attention.key_length", dim // heads)
    if fields.size("attention.value_length", head_dim) != head_dim:
        raise Unsupported(f"{source}: {arch}.attention.value_length = {fields.size('attention.value_length')} differs from the head size {head_dim}")
    rope = gguf_rope(fields, family, head_dim, context_len=fields.size("context_length"), tables=tables)
    num_experts, experts_used, is_normed = _gguf_experts(fields, family)
    by_name = {part: shapes.get(f"blk.{_first_sparse(shapes, num_layers)}.ffn_{part}.weight", (0, 0)) for part in ("gate_exps", "gate_shexp")}
    config = ModelConfig(
        arch=str(arch),
        num_layers=num_layers,
        dim=dim,
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=fields.size("feed_forward_length", 1 if num_experts else None),
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        context_len=rope.context_len,
        norm_eps=fields.positive("attention.layer_norm_rms_epsilon"),
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rope_scale=rope.scale,
        rotary_dim=None if rope.rotary_dim == head_dim else rope.rotary_dim,
        rope_local_theta=rope.local_theta,
        rotary_layers=_every(family.nope_step, num_layers),
        long_rope_factors=rope.long_factors,
        long_context_len=rope.long_context_len,
        is_qkv_biased=family.is_qkv_biased or "blk.0.attn_q.bias" in shapes,
        is_head_tied="output.weight" not in shapes,
        qk_norm=family.qk_norm,
        has_pre_norms=family.has_pre_norms,
        has_post_norms=family.has_post_norms,
        activation=family.activation,
        embed_scale=math.sqrt(dim) if family.is_embed_scaled else 1.0,
        query_scale=_gguf_query_scale(fields, num_layers, dim // heads, head_dim),
        attn_softcap=_softcap(fields, family, "attn_logit_softcapping", family.attn_softcap),
        head_softcap=_softcap(fields, family, "final_logit_softcapping", family.head_softcap),
        windows=_gguf_windows(fields, family, num_layers, rope.long_context_len or rope.context_len),
        num_experts=num_experts,
        num_experts_used=experts_used,
        expert_dim=by_name["gate_exps"][-2] if num_experts else 0,
        shared_expert_dim=by_name["gate_shexp"][-2] if num_experts else 0,
        is_router_normed=is_normed,
        sparse_layers=_uneven(tuple(f"blk.{i}.ffn_gate_inp.weight" in shapes for i in range(min(num_layers, len(shapes))))) if num_experts else (),
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
        raise Unsupported(f"{source}: architectures {short(archs)} are not supported; supported are {', '.join(HF_ARCHS)}")
    family, fields = FAMILIES[arch], Fields(source, values)
    fields.refuse(HF_NEUTRAL)
    dim, heads, num_layers = fields.size("hidden_size"), fields.size("num_attention_heads"), fields.size("num_hidden_layers")
    head_dim = fields.size("head_dim", 256 if arch.startswith("gemma") else dim // heads)
    rope = hf_rope(fields, family, head_dim, fields.size("max_position_embeddings"))
    num_experts = _num_experts(fields, family, "num_local_experts" if fields.get("num_local_experts") is not None else "num_experts")
    rotary = fields.flags("no_rope_layers", num_layers) if family.nope_step else None
    step = fields.size("no_rope_layer_interval", family.nope_step) if family.nope_step else None
    return _check(
        source,
        ModelConfig(
            arch=arch,
            num_layers=num_layers,
            dim=dim,
            num_heads=heads,
            num_kv_heads=fields.size("num_key_value_heads", heads),
            head_dim=head_dim,
            ffn_dim=fields.size("intermediate_size"),
            vocab_size=fields.size("vocab_size"),
            context_len=rope.context_len,
            norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope_theta=rope.theta,
            rope_factors=rope.factors,
            rope_scale=rope.scale,
            rotary_dim=None if rope.rotary_dim == head_dim else rope.rotary_dim,
            rope_local_theta=rope.local_theta,
            rotary_layers=_every(step, num_layers) if rotary is None else _uneven(rotary),
            long_rope_factors=rope.long_factors,
            long_context_len=rope.long_context_len,
            is_qkv_biased=fields.flag("qkv_bias", family.is_qkv_biased or "model.layers.0.self_attn.q_proj.bias" in names),
            is_head_tied=fields.flag("tie_word_embeddings", family.is_head_tied),
            qk_norm=family.qk_norm,
            has_pre_norms=family.has_pre_norms,
            has_post_norms=family.has_post_norms,
            activation=_hf_activation(fields, family),
            embed_scale=math.sqrt(dim) if family.is_embed_scaled else 1.0,
            query_scale=math.sqrt(head_dim / fields.positive("query_pre_attn_scalar", 256.0)) if arch.startswith("gemma") else 1.0,
            attn_softcap=_softcap(fields, family, "attn_logit_softcapping", family.attn_softcap),
            head_softcap=_softcap(fields, family, "final_logit_softcapping", family.head_softcap),
            windows=_hf_windows(fields, family, num_layers, rope.long_context_len or rope.context_len),
            num_experts=num_experts,
            num_experts_used=fields.size("num_experts_per_tok") if num_experts else 0,
            expert_dim=fields.size("moe_intermediate_size", fields.size("intermediate_size")) if num_experts else 0,
            shared_expert_dim=(fields.optional_size("shared_expert_intermediate_size") or 0) if arch == "qwen2moe" else 0,
            is_router_normed=num_experts > 0 and fields.flag("norm_topk_prob", arch == "llama"),
            sparse_layers=_hf_sparse_layers(fields, num_layers) if num_experts else (),
        ),
    )


def _every(step: int | None, num: int) -> tuple[bool, ...]:
    """False for every step-th of `num` layers."""
    return () if step is None else _uneven(tuple((i + 1) % step != 0 for i in range(min(num, 1 << 16))))


def _uneven(flags: tuple[bool, ...]) -> tuple[bool, ...]:
    """`flags`, or () where all are True."""
    return () if all(flags) else flags


def _softcap(fields: Fields, family: Family, key: str, default: float | None) -> float | None:
    if family.has_softcaps:
        return fields.optional_positive(key, default)
    fields.refuse({key: 0.0})
    return None


def _hf_activation(fields: Fields, family: Family) -> str:
    key = "hidden_activation" if fields.get("hidden_activation") is not None else "hidden_act"
    value = fields.get(key)
    if key == "hidden_act" and family.activation == "gelu":  # older Gemma files call it "gelu" and mean its tanh form
        return "gelu"
    activation = family.activation if value is None else HF_ACTIVATIONS.get(str(value))
    if activation is None:
        raise Unsupported(f"{fields.source}: {key} = {short(value)} is not supported; supported are {', '.join(HF_ACTIVATIONS)}")
    return activation


# ---- windows


def _hf_windows(fields: Fields, family: Family, num_layers: int, context_len: int) -> Windows:
    if family.window_switch is not None and not fields.flag(family.window_switch, False):
        return ()
    if not family.has_windows:
        fields.refuse({family.window_switch or "sliding_window": False})
        return ()
    size = fields.optional_size("sliding_window")
    if size is None and family.window_step is not None and "sliding_window" not in fields.values:
        size = 4096
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) < num_layers or not set(map(str, kinds)) <= {"sliding_attention", "full_attention"}:
            raise Unsupported(
                f"{fields.source}: layer_types = {short(kinds)}; one of sliding_attention and full_attention for each layer is supported"
            )
        return _windows(size, tuple(kind == "sliding_attention" for kind in kinds[:num_layers]), context_len)
    layers = range(min(num_layers, 1 << 16))
    if family.window_step is not None:
        step = fields.size("sliding_window_pattern", family.window_step)
        return _windows(size, tuple((i + 1) % step != 0 for i in layers), context_len)
    if family.nope_step is not None:
        raise Unsupported(f"{fields.source}: sliding_window without layer_types is not supported for this family")
    if family.window_switch is not None:
        first = fields.size("max_window_layers", 28)
        return _windows(size, tuple(i >= first for i in layers), context_len)
    return _windows(size, tuple(True for _ in layers), context_len)


def _gguf_windows(fields: Fields, family: Family, num_layers: int, context_len: int) -> Windows:
    if not family.has_windows or family.window_switch is not None:
        fields.refuse({"attention.sliding_window": 0})
        return ()
    size, pattern = fields.optional_size("attention.sliding_window"), fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        has_window = fields.flags("attention.sliding_window_pattern", num_layers) or ()
    else:
        step = fields.optional_size("attention.sliding_window_pattern") or family.window_step
        has_window = tuple(step is None or (i + 1) % step != 0 for i in range(min(num_layers, 1 << 16)))
    return _windows(size, has_window, context_len)


def _windows(size: int | None, has_window: tuple[bool, ...], context_len: int) -> Windows:
    """A window as long as the context is none (but still tells which layers are local, where thetas differ)."""
    if size is None or not any(has_window):
        return ()
    return tuple(min(size, context_len) if is_local else None for is_local in has_window)


# ---- scales and experts


def _gguf_query_scale(fields: Fields, num_layers: int, dim_per_head: int, head_dim: int) -> float:
    """Of q, so that 1 / sqrt(head_dim) becomes the model's own scale."""
    scale = fields.optional_positive("attention.scale")
    if scale is not None:
        return scale * math.sqrt(head_dim)
    return math.sqrt(head_dim / dim_per_head) if (fields.prefix, num_layers) in GEMMA_27B else 1.0


def _num_experts(fields: Fields, family: Family, key: str) -> int:
    if not family.has_experts:
        fields.refuse({key: 0})
    num = fields.optional_size(key) or 0
    if num > MAX_EXPERTS:
        raise BadModelFile(f"{fields.source}: {fields.prefix}{key} is {num}; at most {MAX_EXPERTS} are supported")
    return num


def _gguf_experts(fields: Fields, family: Family) -> tuple[int, int, bool]:
    """(experts, experts used, whether their weights are normed)."""
    num = _num_experts(fields, family, "expert_count")
    if not num:
        return 0, 0, False
    if fields.get("expert_gating_func") not in (None, 0, 1) or fields.get("expert_weights_scale") not in (None, 0, 1):
        values = (fields.get("expert_gating_func"), fields.get("expert_weights_scale"))
        raise Unsupported(f"{fields.source}: expert_gating_func, expert_weights_scale = {values}; only softmax (1) and 1.0 are supported")
    return num, fields.size("expert_used_count"), fields.flag("expert_weights_norm", family.is_router_normed)


def _first_sparse(shapes: Shapes, num_layers: int) -> int:
    return next((i for i in range(min(num_layers, len(shapes))) if f"blk.{i}.ffn_gate_exps.weight" in shapes), 0)


def _hf_sparse_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    step, dense = fields.size("decoder_sparse_step", 1), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise BadModelFile(f"{fields.source}: mlp_only_layers is {short(dense)}; must be a list of layers")
    return _uneven(tuple(i not in dense and (i + 1) % step == 0 for i in range(min(num_layers, 1 << 16))))


def _check(source: str, config: ModelConfig) -> ModelConfig:
    if config.head_dim < 2 or config.head_dim % 2 or config.num_heads % config.num_kv_heads or (config.rotary_dim or 2) % 2:
        heads = f"{config.num_heads} heads of size {config.head_dim}, {config.num_kv_heads} key heads"
        raise BadModelFile(f"{source}: {heads}; the size must be even, and the heads shared evenly")
    if config.num_experts_used > config.num_experts:
        raise BadModelFile(f"{source}: {config.num_experts_used} experts used of {config.num_experts}")
    return config
