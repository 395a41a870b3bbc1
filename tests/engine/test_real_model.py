"""SmolLM2-135M as it is downloaded: equal to transformers on the same weights, and bit-equal to itself in every company."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from ponder import catalogue
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8 import Int8, Int8Head
from ponder.core.asks import GREEDY, Expand, Extend, Extension, Prefix, Sampling, Score, chat
from ponder.core.errors import BadField
from ponder.core.formats import WeightFormat
from ponder.engine.open import open_process
from ponder.engine.process import LocalProcess, Settings
from ponder.models.checkpoint import HF_NAMES, FileCheckpoint, open_checkpoint
from ponder.models.decoder import load
from ponder.models.tokenizer import TextTokenizer, open_tokenizer
from ponder.testing.run import answer_turn

QUESTIONS = (
    "What is the capital of France?", "Write two sentences about the sea.", "Tell me a story about a dog and a cat.", "Explain how rain forms.",
    "Here is a list: apples, pears, plums, cherries, figs. " * 12 + "What was the third thing?",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> tuple[FileCheckpoint, TextTokenizer]:
    return open_checkpoint(smollm2_path), open_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def oracle(model: tuple[FileCheckpoint, TextTokenizer]) -> Iterator[transformers.LlamaForCausalLM]:
    checkpoint, _ = model
    c = checkpoint.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim, max_position_embeddings=c.context_len, rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(config)
    parts = ("attn_norm", "ffn_norm", "q", "k", "v", "o", "gate", "up", "down")
    state = {HF_NAMES[name]: checkpoint.tensor(name).dense() for name in ("embed", "norm")}
    for i in range(c.num_layers):
        state |= {f"model.layers.{i}.{HF_NAMES[part]}": checkpoint.tensor(f"layers.{i}.{part}").dense() for part in parts}
    hf.load_state_dict(state, strict=False, assign=True)
    hf.tie_weights()
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config)
    yield hf.eval()


@torch.inference_mode()
def shortfalls(hf: transformers.LlamaForCausalLM, process: LocalProcess, answers: Sequence[Extension]) -> list[float]:
    """How far each greedy token's logit lies below the largest that transformers computes at its place."""
    found = []
    for answer in answers:
        prompt_ids = process.tokenizer.render(answer.prefix.prompt.messages)
        logits = hf(torch.tensor([[*prompt_ids, *answer.prefix.tokens]])).logits[0, len(prompt_ids) - 1 : -1]
        taken = torch.tensor(answer.prefix.tokens)
        found += (logits.amax(-1) - logits.gather(1, taken[:, None])[:, 0]).tolist()
    return found


def greedy(process: LocalProcess) -> list[Extension]:
    return list(answer_turn([Extend(prefix=Prefix(chat(q, max_tokens=48)), seed=0, sampling=GREEDY) for q in QUESTIONS], process))


def test_greedy_text_equals_transformers(model, oracle):
    checkpoint, tokenizer = model
    exact = LocalProcess(load(checkpoint, Float32(), None, torch.float32), tokenizer, Sarathi())
    answers = greedy(exact)
    assert sum(len(a.prefix.tokens) for a in answers) > 120
    assert max(shortfalls(oracle, exact, answers)) < 1e-3
    assert "Paris" in answers[0].prefix.text
    del exact
    rounded = LocalProcess(load(checkpoint, Bf16(), Bf16Head()), tokenizer, Sarathi())
    missing = shortfalls(oracle, rounded, greedy(rounded))
    assert max(missing) < 0.5
    assert sum(x == 0 for x in missing) > 0.95 * len(missing)


@pytest.mark.parametrize("weights", [Bf16(), Int8(), Int4()], ids=lambda w: w.name)
def test_an_answer_is_the_same_whatever_runs_beside_it(model, weights: WeightFormat):
    """Bit for bit on the real model: alone; in a crowd in small chunks; from the cache; in two asks; recomputed."""
    checkpoint, tokenizer = model
    decoder = load(checkpoint, weights, Bf16Head() if isinstance(weights, Bf16) else Int8Head())
    asks = [Extend(prefix=Prefix(chat(q, max_tokens=14)), seed=i, sampling=Sampling(temperature=0.9)) for i, q in enumerate(QUESTIONS)]
    alone = [answer_turn([ask], LocalProcess(decoder, tokenizer, Sarathi()))[0].prefix for ask in asks]
    crowd = LocalProcess(decoder, tokenizer, Sarathi(), Settings(chunk=50))
    others = [Expand(prefix=Prefix(asks[0].prefix.prompt), num=5), Score(prefix=Prefix(asks[1].prefix.prompt), options=(" Yes, it is.", " No"))]
    for _ in ("computed", "cached"):
        assert [a.prefix for a in answer_turn([*asks, *others], crowd)[: len(asks)]] == alone
    halves = [a.prefix for a in answer_turn([replace(ask, max_tokens=5) for ask in asks], crowd)]
    for process in (crowd, LocalProcess(decoder, tokenizer, Sarathi(), Settings(kv_bytes=1 << 25, max_rows=3))):
        open_ends = [(ask, half, whole) for ask, half, whole in zip(asks, halves, alone) if not half.is_final]
        assert [a.prefix for a in answer_turn([replace(ask, prefix=half) for ask, half, _ in open_ends], process)] == [
            whole for _, _, whole in open_ends
        ]


def test_open_process(smollm2_path: Path):
    process = open_process(smollm2_path, weights=Int4(), head=Int8Head(), scheduler=Sarathi())
    (answer,) = answer_turn([Extend(prefix=Prefix(chat(QUESTIONS[0], max_tokens=20)), seed=0, sampling=GREEDY)], process)
    assert answer.prefix.text == "The capital of France is Paris."
    assert process.model_id.removesuffix("/torch").endswith("/int4/int8-head/bfloat16")
    assert process.decoder.nbytes < 160e6


def test_a_shorter_context_ends_answers(smollm2_path: Path):
    def opened(context_len: int | None) -> LocalProcess:
        return catalogue.open_model(smollm2_path, settings=Settings(context_len=context_len))

    whole, prompt = opened(None), chat(QUESTIONS[2])
    num = whole.prompt_len(prompt) + 5
    short = opened(num)
    assert (whole.context_len, short.context_len) == (8192, num)
    assert short.model_id == f"{whole.model_id}/context-{num}"
    (answer,) = answer_turn([Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY)], short)
    assert answer.prefix.finish == "length" and len(answer.prefix.tokens) == 5
    with pytest.raises(BadField, match="context_len is 9000; the model's own allows 1 to 8192"):
        opened(9000)
