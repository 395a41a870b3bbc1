"""The families that the decoder runs: what every model of one has, and what holds where its file says nothing.

Keys are GGUF's names of architectures; Mistral and Mixtral are "llama" there. A family is no class: all of it ends up in ModelConfig.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Family:
    """Settings of a family. Those that a file states too are its defaults."""

    qk_norm: str = "none"
    has_pre_norms: bool = True
    has_post_norms: bool = False
    activation: str = "silu"
    is_qkv_biased: bool = False
    is_head_tied: bool = False
    is_embed_scaled: bool = False  # by sqrt(dim)
    is_norm_offset: bool = False  # Hugging Face files hold norm weights less 1
    is_interleaved: bool = False  # GGUF files hold the rows of q and k as rotary pairs, not halves
    is_router_normed: bool = False
    has_experts: bool = False  # may have
    can_rotate_partly: bool = False
    has_windows: bool = False  # may have, in every layer unless window_step says otherwise
    window_step: int | None = None  # every so many layers one sees everything
    window_switch: str | None = None  # Hugging Face key without which the window of the config means nothing
    nope_step: int | None = None  # every so many layers one does not rotate
    rope_theta: float = 10000.0
    rope_local_theta: float | None = None
    has_softcaps: bool = False  # may have
    attn_softcap: float | None = None
    head_softcap: float | None = None


GEMMA = Family(
    has_post_norms=True, activation="gelu", is_head_tied=True, is_embed_scaled=True, is_norm_offset=True, has_windows=True, has_softcaps=True
)
QWEN_SWITCH = "use_sliding_window"
FAMILIES = {
    "llama": Family(is_interleaved=True, has_windows=True, has_experts=True, is_router_normed=True),
    "qwen2": Family(is_qkv_biased=True, has_windows=True, window_switch=QWEN_SWITCH),
    "qwen3": Family(qk_norm="head", has_windows=True, window_switch=QWEN_SWITCH),
    "qwen2moe": Family(is_qkv_biased=True, has_experts=True, window_switch=QWEN_SWITCH),
    "qwen3moe": Family(qk_norm="head", has_experts=True, is_router_normed=True, window_switch=QWEN_SWITCH),
    "gemma2": replace(GEMMA, window_step=2, attn_softcap=50.0, head_softcap=30.0),
    "gemma3": replace(GEMMA, window_step=6, qk_norm="head", rope_theta=1e6, rope_local_theta=10000.0),
    "phi3": Family(has_windows=True, can_rotate_partly=True),
    "smollm3": Family(is_interleaved=True, is_head_tied=True, has_windows=True, window_switch=QWEN_SWITCH, nope_step=4, rope_theta=2e6),
    "olmo2": Family(qk_norm="row", has_pre_norms=False, has_post_norms=True),
    "olmoe": Family(qk_norm="row", has_experts=True),
}
# architectures of Hugging Face folders
HF_ARCHS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "SmolLM3ForCausalLM": "smollm3",
    "Olmo2ForCausalLM": "olmo2",
    "OlmoeForCausalLM": "olmoe",
}
