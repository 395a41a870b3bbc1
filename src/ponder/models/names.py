"""Where the decoder's tensors lie in a file: the name it has there, and which rows, where the file stores several as one.

Files fuse q, k, v (Phi-3), gate and up (Phi-3), and in GGUF all experts of a layer. Names of our tensors: core.formats.Checkpoint.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ponder.core.formats import ModelConfig

Shape = tuple[int, ...]
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}  # parts in the order of their rows

GGUF_NAMES = {
    "embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight", "layers.": "blk.",
    "attn_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight", "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight",
    "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight", "o": "attn_output.weight",
    "q.bias": "attn_q.bias", "k.bias": "attn_k.bias", "v.bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
    "attn_post_norm": "post_attention_norm.weight", "ffn_post_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight", "experts.gate": "ffn_gate_exps.weight", "experts.up": "ffn_up_exps.weight",
    "experts.down": "ffn_down_exps.weight",
    "shared.router": "ffn_gate_inp_shexp.weight", "shared.gate": "ffn_gate_shexp.weight", "shared.up": "ffn_up_shexp.weight",
    "shared.down": "ffn_down_shexp.weight",
}  # fmt: skip
HF_NAMES = {
    "embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight", "layers.": "model.layers.",
    "attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
    "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight", "o": "self_attn.o_proj.weight",
    "q.bias": "self_attn.q_proj.bias", "k.bias": "self_attn.k_proj.bias", "v.bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "router": "mlp.gate.weight", "experts.gate": "mlp.experts.{}.gate_proj.weight", "experts.up": "mlp.experts.{}.up_proj.weight",
    "experts.down": "mlp.experts.{}.down_proj.weight", "shared.router": "mlp.shared_expert_gate.weight",
    "shared.gate": "mlp.shared_expert.gate_proj.weight", "shared.up": "mlp.shared_expert.up_proj.weight",
    "shared.down": "mlp.shared_expert.down_proj.weight",
}  # fmt: skip
POST_NORMS = {"attn_post_norm": "post_attention_layernorm.weight", "ffn_post_norm": "post_feedforward_layernorm.weight"}
SANDWICH = POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm.weight"}
MIXTRAL = {
    "router": "block_sparse_moe.gate.weight", "experts.gate": "block_sparse_moe.experts.{}.w1.weight",
    "experts.down": "block_sparse_moe.experts.{}.w2.weight", "experts.up": "block_sparse_moe.experts.{}.w3.weight",
}  # fmt: skip
GGUF_OTHERS = {"phi3": {"qkv": "attn_qkv.weight", "gate_up": "ffn_up.weight"}}  # by architecture: what differs
HF_OTHERS = {
    "llama": MIXTRAL,
    "gemma2": SANDWICH,
    "gemma3": SANDWICH,
    "olmo2": POST_NORMS,
    "phi3": {"qkv": "self_attn.qkv_proj.weight", "gate_up": "mlp.gate_up_proj.weight"},
}


@dataclass(frozen=True)
class Place:
    """Rows start .. start + rows of the tensor `stored`, which has `shape` in the file; its leading dimensions but the last are rows."""

    stored: str
    shape: Shape
    start: int
    rows: int

    @property
    def is_whole(self) -> bool:
        return self.rows == math.prod(self.shape[:-1]) or len(self.shape) == 1


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Our name -> shape of every tensor that a model of this config has."""
    shapes: dict[str, Shape] = {"embed": (config.vocab_size, config.dim), "norm": (config.dim,)}
    if not config.is_head_tied:
        shapes["head"] = (config.vocab_size, config.dim)
    attention, dense, sparse = _attention_shapes(config), _ffn_shapes(config.dim, config.ffn_dim), _expert_shapes(config)
    for i in range(config.num_layers):
        layer = attention | (sparse if config.is_sparse(i) else dense)
        shapes |= {f"layers.{i}.{part}": shape for part, shape in layer.items()}
    return shapes


def gguf_places(config: ModelConfig) -> dict[str, Place]:
    """Our name -> where GGUF files of this architecture hold it."""
    return _places(config, GGUF_NAMES | GGUF_OTHERS.get(config.arch, {}))


def hf_places(config: ModelConfig) -> dict[str, Place]:
    """Our name -> where Hugging Face folders of this architecture hold it."""
    return _places(config, HF_NAMES | HF_OTHERS.get(config.arch, {}))


def _attention_shapes(config: ModelConfig) -> dict[str, Shape]:
    dim, q_dim, kv_dim = config.dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {"attn_norm": (dim,), "ffn_norm": (dim,)} if config.has_pre_norms else {}
    shapes |= {"q": (q_dim, dim), "k": (kv_dim, dim), "v": (kv_dim, dim), "o": (dim, q_dim)}
    if config.has_post_norms:
        shapes |= {"attn_post_norm": (dim,), "ffn_post_norm": (dim,)}
    if config.qk_norm != "none":
        is_head = config.qk_norm == "head"
        shapes |= {"q_norm": (config.head_dim if is_head else q_dim,), "k_norm": (config.head_dim if is_head else kv_dim,)}
    if config.is_qkv_biased:
        shapes |= {"q.bias": (q_dim,), "k.bias": (kv_dim,), "v.bias": (kv_dim,)}
    return shapes


def _ffn_shapes(dim: int, width: int) -> dict[str, Shape]:
    return {"gate": (width, dim), "up": (width, dim), "down": (dim, width)}


def _expert_shapes(config: ModelConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"router": (config.num_experts, config.dim)}
    one = _ffn_shapes(config.dim, config.expert_dim)
    shapes |= {f"experts.{e}.{part}": shape for e in range(config.num_experts) for part, shape in one.items()}
    if config.shared_expert_dim:
        shapes["shared.router"] = (config.dim,)
        shapes |= {f"shared.{part}": shape for part, shape in _ffn_shapes(config.dim, config.shared_expert_dim).items()}
    return shapes


def _places(config: ModelConfig, names: Mapping[str, str]) -> dict[str, Place]:
    shapes = expected_shapes(config)
    return {name: _place(name, shapes, config.num_experts, names) for name in shapes}


def _place(name: str, shapes: Mapping[str, Shape], num_experts: int, names: Mapping[str, str]) -> Place:
    shape = shapes[name]
    if not name.startswith("layers."):
        return Place(names[name], shape, 0, shape[0])
    _, layer, part = name.split(".", 2)
    ours, prefix = f"layers.{layer}.", f"{names['layers.']}{layer}."
    for fused, parts in FUSED.items():
        if fused in names and part in parts:
            sizes = [shapes[ours + p][0] for p in parts]
            return Place(prefix + names[fused], (sum(sizes), *shape[1:]), sum(sizes[: parts.index(part)]), shape[0])
    if part.startswith("experts."):
        _, number, part = part.split(".")
        stored = names[f"experts.{part}"]
        if "{}" in stored:
            return Place(prefix + stored.format(number), shape, 0, shape[0])
        return Place(prefix + stored, (num_experts, *shape), int(number) * shape[0], shape[0])
    return Place(prefix + names[part], shape, 0, shape[0])
