"""A random model of a few thousand weights and a tokenizer of bytes: enough engine for a law, in milliseconds a token."""

import math
from dataclasses import dataclass

import torch

from ponder.core.formats import ModelConfig
from ponder.testing.byte_tokenizer import VOCAB
from ponder.testing.in_memory import InMemory

CONFIG = ModelConfig(
    arch="llama", num_layers=3, dim=96, num_heads=6, num_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=VOCAB, context_len=1024, norm_eps=1e-5,
    rope_theta=10000.0, is_head_tied=True,
)  # fmt: skip
WIDTHS = {"q": (96, 96), "k": (32, 96), "v": (32, 96), "o": (96, 96), "gate": (128, 96), "up": (128, 96), "down": (96, 128)}


@dataclass(frozen=True)
class RandomCheckpoint:
    """A Checkpoint whose weights are a function of their names."""

    config: ModelConfig = CONFIG
    model_id: str = "random"

    def tensor(self, name: str) -> InMemory:
        part = name.rpartition(".")[2]
        shape = (VOCAB, self.config.dim) if part == "embed" else WIDTHS.get(part)
        draw = torch.Generator().manual_seed(sum(map(ord, name)))
        if shape is None:  # a norm
            return InMemory(1 + 0.3 * torch.randn(1, self.config.dim, generator=draw), name)
        return InMemory(1.6 / math.sqrt(shape[1]) * torch.randn(*shape, generator=draw), name)
