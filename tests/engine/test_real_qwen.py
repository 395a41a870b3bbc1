"""Qwen2.5-Coder-0.5B as it is downloaded: the same greedy text as transformers on the same dequantized weights."""

import pytest
import torch
import transformers

from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Float32
from ponder.core.asks import GREEDY, Extend, Prefix, chat
from ponder.engine.open import open_process
from ponder.models.checkpoint import HF_NAMES, open_checkpoint
from ponder.models.fetch import MODELS, model_path
from ponder.testing.run import answer_turn

PATH = model_path(MODELS["qwen2.5-coder-0.5b"])
QUESTIONS = ("Write a Python function that reverses a string.", "What is the capital of France?", "Explain recursion in one sentence.")
NUM_TOKENS = 40


@pytest.mark.slow
@pytest.mark.skipif(not PATH.is_file(), reason="qwen2.5-coder-0.5b is not in the cache; 491 MB are not pulled for a test")
@torch.inference_mode()
def test_greedy_text_equals_transformers():
    checkpoint = open_checkpoint(PATH)
    c = checkpoint.config
    config = transformers.Qwen2Config(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads, max_position_embeddings=c.context_len, rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=c.is_head_tied,
    )  # fmt: skip
    with torch.device("meta"):
        hf = transformers.Qwen2ForCausalLM(config)
    parts = ("attn_norm", "ffn_norm", "q", "k", "v", "o", "gate", "up", "down", "q.bias", "k.bias", "v.bias")
    top = ("embed", "norm") if c.is_head_tied else ("embed", "norm", "head")
    state = {HF_NAMES[name]: checkpoint.tensor(name).dense() for name in top}
    for i in range(c.num_layers):
        for part in parts:
            dense = checkpoint.tensor(f"layers.{i}.{part}").dense()
            state[f"model.layers.{i}.{HF_NAMES[part]}"] = dense.reshape(-1) if part.endswith("bias") else dense
    hf.load_state_dict(state, strict=False, assign=True)
    hf.tie_weights()
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config)
    hf.eval()
    process = open_process(PATH, weights=Float32(), dtype=torch.float32, scheduler=Sarathi())
    prompts = [chat(question, max_tokens=NUM_TOKENS) for question in QUESTIONS]
    answers = answer_turn([Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY) for prompt in prompts], process)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = process.tokenizer.render(prompt.messages)
        out = hf.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=NUM_TOKENS, do_sample=False,
            eos_token_id=sorted(process.tokenizer.eos_ids), pad_token_id=0,
        )  # fmt: skip
        assert answer.prefix.tokens == tuple(out[0, len(ids) :].tolist()), answer.prefix.text
