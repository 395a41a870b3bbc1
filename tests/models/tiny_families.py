"""Random models of a few thousand weights, one or more of every family, as transformers makes them and as both kinds of files hold them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch
import transformers

from models.gguf_writer import Stored, f32, write
from ponder.models.families import HF_ARCHS

VOCAB = 96
BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SHORT, LONG = [1.0, 1.1, 1.3], [1.5, 2.0, 4.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": LONG, "partial_rotary_factor": 0.75}


LONGROPE_SCALE = float((1 + np.log(128 / 96) / np.log(96)) ** 0.5)
HEADS_OF_16 = {"attention.key_length": 16, "attention.value_length": 16}


@dataclass(frozen=True)
class Case:
    """A tiny model: transformers' class, its config, and what GGUF metadata says beyond what every file does."""

    model: str  # name of the class, without ForCausalLM
    values: Mapping[str, object]
    gguf: Mapping[str, object] | None = None  # None: GGUF has no way to say this


def case(model: str, gguf: Mapping[str, object] | None = None, *, is_in_gguf: bool = True, **values: object) -> Case:
    return Case(model, BASE | values, dict(gguf or {}) if is_in_gguf else None)


CASES = {
    "llama2": case("Llama", rope_parameters={"rope_type": "default", "rope_theta": 5e3}),
    "llama-linear": case(
        "Llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    ),
    "llama3": case("Llama", rope_parameters=LLAMA3 | {"rope_theta": 1e4}, tie_word_embeddings=True),
    "mistral": case("Mistral", HEADS_OF_16 | {"attention.sliding_window": 7}, sliding_window=7, head_dim=16),
    "mixtral": case("Mixtral", {"expert_count": 5, "expert_used_count": 2}, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
    "qwen2": case("Qwen2", tie_word_embeddings=True),
    "qwen2-yarn": case(
        "Qwen2", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
        rope_parameters=YARN | {"rope_theta": 1e4},
    ),
    "qwen2-window": case("Qwen2", is_in_gguf=False, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3": case("Qwen3", HEADS_OF_16, head_dim=16),
    "qwen2moe": case(
        "Qwen2Moe", {"expert_count": 6, "expert_used_count": 2, "expert_weights_norm": True}, **EXPERTS, shared_expert_intermediate_size=20,
        norm_topk_prob=True,
    ),
    "qwen2moe-dense-layer": case("Qwen2Moe", is_in_gguf=False, **EXPERTS, shared_expert_intermediate_size=20, mlp_only_layers=[1]),
    "qwen3moe-step": case("Qwen3Moe", is_in_gguf=False, **EXPERTS, head_dim=16, decoder_sparse_step=2),
    "qwen3moe": case(
        "Qwen3Moe", {"expert_count": 6, "expert_used_count": 2, **HEADS_OF_16}, **EXPERTS, head_dim=16,
        norm_topk_prob=True,
    ),
    "gemma2": case(
        "Gemma2",
        {"attention.sliding_window": 7, **HEADS_OF_16, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0, "attention.scale": 24**-0.5},
        head_dim=16, sliding_window=7, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, tie_word_embeddings=True,
    ),
    "gemma3": case(
        "Gemma3",
        {"attention.sliding_window": 7, **HEADS_OF_16, "rope.freq_base": 2e4, "attention.scale": 24**-0.5,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window_pattern": 3, "rope.freq_base_swa": 100.0},
        num_hidden_layers=4, head_dim=16, sliding_window=7, sliding_window_pattern=3, query_pre_attn_scalar=24, tie_word_embeddings=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "phi3": case("Phi3", {"attention.sliding_window": 7, "rope.dimension_count": 8}, sliding_window=7),
    "phi3-longrope": case(
        "Phi3", {"rope.dimension_count": 6, "rope.scaling.original_context_length": 96, "rope.scaling.attn_factor": LONGROPE_SCALE},
        original_max_position_embeddings=96, rope_parameters=LONGROPE,
    ),
    "smollm3": case("SmolLM3", num_hidden_layers=5, rope_parameters={"rope_type": "default", "rope_theta": 2e3}, tie_word_embeddings=True),
    "smollm3-window": case(
        "SmolLM3", is_in_gguf=False, num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=7,
        rope_parameters={"rope_type": "default", "rope_theta": 2e3},
    ),
    "olmo2": case("Olmo2"),
    "olmoe": case("Olmoe", {"expert_count": 6, "expert_used_count": 2}, num_experts=6, num_experts_per_tok=2, num_key_value_heads=4),
    "olmoe-normed": case(
        "Olmoe", {"expert_count": 6, "expert_used_count": 2, "expert_weights_norm": True}, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True
    ),
}  # fmt: skip
IN_GGUF = [name for name, c in CASES.items() if c.gguf is not None]


def hf_model(name: str, **changes: object) -> transformers.PreTrainedModel:
    """The model in float32, eager attention. Weights are so large that attention is not flat and experts differ; norms are no constants.

    changes: other values of its config.
    """
    c = CASES[name]
    kind = "Gemma3TextConfig" if c.model == "Gemma3" else f"{c.model}Config"
    config = getattr(transformers, kind)(**c.values | changes, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{c.model}ForCausalLM")(config).eval()
        for parameter_name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.2
            base = parameter.data if "norm" in parameter_name else torch.zeros_like(parameter)
            parameter.data = base + scale * torch.randn_like(parameter)
        if not config.tie_word_embeddings:
            model.lm_head.weight.data *= 1.5
    return model


def save_folder(name: str, folder: Path, **changes: object) -> Path:
    """The model as transformers writes it."""
    hf_model(name, **changes).save_pretrained(folder)
    return folder


def save_gguf(name: str, path: Path, changes: Mapping[str, object] | None = None) -> Path:
    """The model in F32 as the published converter writes it. changes: other metadata, without the architecture's prefix; None removes a key."""
    folder = save_folder(name, path.with_suffix(""))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    arch = HF_ARCHS[values["architectures"][0]]
    keys = _metadata(arch, values) | CASES[name].gguf | dict(changes or {})
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    return write(path, metadata, _tables(values) | _tensors(arch, values, tensors))


def _metadata(arch: str, values: Mapping[str, object]) -> dict[str, object]:
    rope = values["rope_parameters"]
    keys: dict[str, object] = {
        "block_count": values["num_hidden_layers"], "embedding_length": values["hidden_size"], "feed_forward_length": values["intermediate_size"],
        "attention.head_count": values["num_attention_heads"], "attention.head_count_kv": values["num_key_value_heads"],
        "context_length": values["max_position_embeddings"], "attention.layer_norm_rms_epsilon": np.float32(values["rms_norm_eps"]),
    }  # fmt: skip
    if "rope_theta" in rope:
        keys["rope.freq_base"] = np.float32(rope["rope_theta"])
    if "moe_intermediate_size" in values:
        keys["expert_feed_forward_length"] = values["moe_intermediate_size"]
    return keys


def _tables(values: Mapping[str, object]) -> dict[str, Stored]:
    rope = values["rope_parameters"]
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{x}.weight": f32(np.array(rope[f"{x}_factor"])) for x in ("short", "long")}
    if rope.get("rope_type") == "llama3":
        config = transformers.LlamaConfig(**{key: values[key] for key in (*BASE, "rope_parameters")})
        scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = rope["rope_theta"] ** (-torch.arange(0, 8, 2) / 8)
        return {"rope_freqs.weight": f32((plain / scaled).numpy())}
    return {}


def _tensors(arch: str, values: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[{"gemma2": "GEMMA2", "gemma3": "GEMMA3"}.get(arch, arch.upper())], values["num_hidden_layers"])
    stored: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        rows = tensor.numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            rows = rows + np.float32(1)
        if arch in ("llama", "smollm3") and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = values["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            rows = rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            number, _, part = after.partition(".")
            stacks.setdefault(f"{before}.experts.{part}", {})[int(number)] = rows
            continue
        if name.endswith("shared_expert_gate.weight"):
            rows = rows.reshape(-1)
        stored[_name(names, name)] = rows
    stored |= {_name(names, name): np.stack([rows[i] for i in range(len(rows))]) for name, rows in stacks.items()}
    return {name: f32(rows) for name, rows in stored.items()}


def _name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found
