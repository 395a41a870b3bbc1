"""Random models of a few thousand weights, the transformers model each equals, and a tokenizer of bytes."""

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.core.formats import ModelConfig
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import HF_NAMES
from ponder.models.decoder import Decoder, load
from ponder.testing.byte_tokenizer import END, VOCAB, ByteTokenizer
from ponder.testing.in_memory import InMemory

FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


@dataclass(frozen=True)
class StateCheckpoint:
    """A Checkpoint over a transformers state dict."""

    config: ModelConfig
    state: dict[str, Tensor]
    model_id: str = "tiny"

    def tensor(self, name: str) -> InMemory:
        if not name.startswith("layers."):
            return InMemory(self.state[HF_NAMES[name]], name)
        _, layer, part = name.split(".", 2)
        return InMemory(self.state[f"{HF_NAMES['layers.']}{layer}.{HF_NAMES[part]}"], name)


def tiny(family: str, *, is_tied: bool = True, context_len: int = 512, seed: int = 0):
    """(checkpoint, transformers model in float32). Weights are large enough that attention is not flat."""
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    hf = model_class(config_class(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=128, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=context_len, rms_norm_eps=1e-5, tie_word_embeddings=is_tied, bos_token_id=END + 1, eos_token_id=END,
        initializer_range=0.15,
    )).eval()  # fmt: skip
    for name, parameter in hf.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    config = ModelConfig(
        arch=family, num_layers=3, dim=96, num_heads=6, num_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=VOCAB, context_len=context_len,
        norm_eps=1e-5, rope_theta=10000.0, is_qkv_biased=family == "qwen2", is_head_tied=is_tied,
    )  # fmt: skip
    return StateCheckpoint(config, {name: x.detach() for name, x in hf.state_dict().items()}), hf


def tiny_decoder(family: str = "llama", *, is_exact: bool = False, context_len: int = 512) -> Decoder:
    """is_exact: float32 all through, for comparison with transformers; else bfloat16, whose rows do not depend on each other."""
    checkpoint, _ = tiny(family, context_len=context_len)
    if is_exact:
        return load(checkpoint, Float32(), None, torch.float32)
    return load(checkpoint, Bf16(), Bf16Head())


def tiny_process(decoder: Decoder, *, max_rows: int = 64, kv_bytes: int = 1 << 24, chunk: int = 512) -> LocalProcess:
    return LocalProcess(decoder, ByteTokenizer(), Sarathi(), Settings(max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk))
