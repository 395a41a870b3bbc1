"""GGUF files mean to us what they mean to llama.cpp: log-probabilities of every family, on the same file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.llama_cpp import rewritten, serve
from models.plain_attend import PlainAttend
from models.tiny_families import IN_GGUF, VOCAB, save_gguf
from ponder.accelerate.weights.dense import Float32
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import load

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENIZER = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\n", *(chr(0x4E00 + i) for i in range(VOCAB - 4))],
    "tokenizer.ggml.scores": -np.arange(VOCAB, dtype=np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3] + [1] * (VOCAB - 3), dtype=np.int32),
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
# what llama.cpp does not read from the file: windows of Mistral and Phi-3, scales and layer patterns of Gemma, Qwen2-MoE's norm of weights
UNREAD = {
    "mistral": {"attention.sliding_window": None},
    "phi3": {"attention.sliding_window": None},
    "gemma2": {"attention.scale": None},
    "gemma3": {"attention.scale": None, "attention.sliding_window_pattern": None},
    "qwen2moe": {"expert_weights_norm": None, "expert_shared_feed_forward_length": 20},
}
GELU = {"gemma2", "gemma3"}  # llama.cpp looks it up in a table of float16


@pytest.mark.parametrize("name", [name for name in IN_GGUF if name != "olmoe-normed"])  # neither does it read that of OLMoE
def test_log_probabilities_equal_llama_cpp(tmp_path: Path, name: str):
    path = rewritten(save_gguf(name, tmp_path / "m.gguf", UNREAD.get(name)), tmp_path / "whole.gguf", TOKENIZER)
    decoder = load(open_checkpoint(path), Float32(), None, torch.float32, context_len=128)
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(1))
    plan = PlainAttend(decoder.config)
    with torch.inference_mode():
        positions = plan.add([None, *range(39)])
        ours = decoder.logits(decoder.forward(tokens, positions, plan.attend)).log_softmax(-1)
    with serve(path) as server:
        for length in (1, 5, 20, 40):
            theirs = server.log_p(tokens[:length].tolist(), VOCAB)
            assert len(theirs) == VOCAB
            gap = max(abs(float(ours[length - 1, i]) - log_p) for i, log_p in theirs.items())
            assert gap < (5e-3 if name in GELU else 1e-4), length
