"""What a pass computes and reads, against counts by hand, by PyTorch and by brute force; wrong counts that must be caught."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from engine.tiny_models import tiny, tiny_decoder
from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.models.decoder import linears
from ponder.plan.roofline import (
    Operator,
    Outline,
    Pass,
    decode_pass,
    matrix_shapes,
    num_experts_met,
    num_weights,
    operators,
    prefill_passes,
)  # fmt: skip

TINY = ModelConfig(
    arch="llama", num_layers=2, dim=8, num_heads=4, num_kv_heads=2, head_dim=2, ffn_dim=16, vocab_size=32, context_len=64, norm_eps=1e-5,
    rope_theta=1e4, is_head_tied=True,
)  # fmt: skip
SPARSE = replace(TINY, num_experts=8, num_experts_used=2, expert_dim=16, ffn_dim=16)
Count = Callable[[Outline, Pass], list[Operator]]


def outline(config: ModelConfig, nbytes: float = 2.0) -> Outline:
    return Outline(config, "bf16", "bf16", dict.fromkeys(matrix_shapes(config), nbytes))


def total(found: list[Operator], field: str, group: str | None = None) -> float:
    return sum(getattr(op, field) for op in found if group in (None, op.group))


def check_by_hand(count: Count) -> None:
    """2 sequences, 10 keys each, one new token each. qkv [16, 8], o [8, 8], gate_up [32, 8], down [8, 16], head [32, 8]."""
    found = count(outline(TINY), decode_pass(2, 10))
    flops = {group: total(found, "flops", group) for group in ("qkv", "o", "gate_up", "down", "head")}
    assert flops == {
        "qkv": 2 * 2 * 2 * 16 * 8,
        "o": 2 * 2 * 2 * 8 * 8,
        "gate_up": 2 * 2 * 2 * 32 * 8,
        "down": 2 * 2 * 2 * 8 * 16,
        "head": 2 * 2 * 32 * 8,
    }
    assert total(found, "weight_bytes") == 2 * (2 * (128 + 64 + 256 + 128) + 256)
    assert total(found, "flops", "attention") == 2 * (4 * 8 * 20)  # layers * 4 * query heads * width * keys met
    assert total(found, "kv_bytes", "attention") == 2 * (2 * 2 * (20 + 2) * 4)  # layers * key heads * width * (read + written) * two in bfloat16


def check_experts(count: Count) -> None:
    one = count(outline(SPARSE), decode_pass(1, 10))
    many = count(outline(SPARSE), Pass((4096,), (0,), 0))
    expert = 3 * 16 * 8
    ffn = [op for op in one if op.group in ("gate_up", "down") and op.shape is not None]
    assert total(ffn, "weight_bytes") == 2 * 2 * 2 * expert  # layers * experts used * bfloat16
    assert total(ffn, "flops") == 2 * 2 * 2 * expert
    ffn = [op for op in many if op.group in ("gate_up", "down") and op.shape is not None]
    assert total(ffn, "weight_bytes") == pytest.approx(2 * 8 * 2 * expert)
    assert total(ffn, "flops") == pytest.approx(4096 * 2 * 2 * 2 * expert)


def without_grouped_heads(seen: Outline, passed: Pass) -> list[Operator]:
    return operators(replace(seen, config=replace(seen.config, num_kv_heads=seen.config.num_heads)), passed)


def with_all_experts(seen: Outline, passed: Pass) -> list[Operator]:
    return operators(replace(seen, config=replace(seen.config, num_experts_used=seen.config.num_experts)), passed)


def without_head(seen: Outline, passed: Pass) -> list[Operator]:
    return [op for op in operators(seen, passed) if op.name != "head"]


def test_by_hand():
    check_by_hand(operators)
    check_experts(operators)


@pytest.mark.parametrize("check, wrong", [(check_by_hand, without_grouped_heads), (check_by_hand, without_head), (check_experts, with_all_experts)])
def test_wrong_counts_are_caught(check, wrong):
    with pytest.raises((AssertionError, KeyError)):
        check(wrong)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_matrices_against_what_pytorch_counts(family):
    checkpoint, hf = tiny(family)
    hf.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hf(torch.zeros(1, 24, dtype=torch.int64))
    counted = counter.get_flop_counts()["Global"]
    found = operators(outline(checkpoint.config), Pass((24,), (0,), 24))
    of_matrices = sum(op.flops for op in found if op.shape is not None)
    scores = 3 * 4 * 6 * 16 * 24 * 24  # eager attention multiplies every query with every key
    assert sum(counted.values()) == of_matrices + scores


def test_bytes_are_those_of_a_packed_decoder():
    decoder = tiny_decoder()
    found = operators(outline(decoder.config), decode_pass(1, 10))
    assert total(found, "weight_bytes") == sum(m.nbytes for layer in decoder.layers for m in linears(layer)) + decoder.head.nbytes
    assert num_weights(decoder.config) * 2 == decoder.nbytes - decoder.head.nbytes  # the tied head is packed once more


def test_weights_of_experts():
    assert num_weights(SPARSE) - num_weights(TINY) == 2 * (7 * 3 * 16 * 8 + 8 * 8)
    assert num_weights(SPARSE, is_active=True) - num_weights(TINY, is_active=True) == 2 * (3 * 16 * 8 + 8 * 8)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.none() | st.integers(1, 20))
def test_keys_against_brute_force(new, before, window):
    seen = [range(max(0, p + 1 - window) if window else 0, p + 1) for p in range(before, before + new)]
    passed = Pass((new,), (before,), 0)
    assert passed.keys_met(window) == sum(map(len, seen))
    assert passed.keys_read(window) == len({key for keys in seen for key in keys})


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 50))
def test_prompts_are_read_whole_whatever_the_chunk(batch, context, chunk):
    passes = prefill_passes(batch, context, chunk)
    assert sum(p.num_tokens for p in passes) == batch * context
    assert all(p.num_tokens == chunk for p in passes[:-1])
    assert sum(p.num_logits for p in passes) == batch
    assert sum(p.keys_met(None) for p in passes) == batch * context * (context + 1) // 2
    flops = sum(op.flops for p in passes for op in operators(outline(TINY), p))
    assert flops == sum(op.flops for op in operators(outline(TINY), Pass((context,) * batch, (0,) * batch, batch)))


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 64))
def test_experts_met(num_tokens, more):
    few, many = num_experts_met(SPARSE, num_tokens), num_experts_met(SPARSE, num_tokens + more)
    assert 2 <= few <= many <= 8 and num_experts_met(SPARSE, 1) == pytest.approx(2)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 2000), st.booleans(), st.booleans())
def test_more_work_is_never_less(batch, context, is_more_rows, is_sparse):
    seen = outline(SPARSE if is_sparse else replace(TINY, windows=(None, 16)))
    less = operators(seen, decode_pass(batch, context))
    more = operators(seen, decode_pass(batch + is_more_rows, context + (not is_more_rows)))
    for field in ("flops", "weight_bytes", "kv_bytes", "stream_bytes"):
        assert total(less, field) <= total(more, field)


@pytest.mark.parametrize("make", [lambda: decode_pass(0, 5), lambda: prefill_passes(1, 0, 5), lambda: Pass((1,), (1, 2), 1), lambda: Pass((), (), 0)])
def test_bad_passes(make):
    with pytest.raises(BadField, match="at least 1"):
        make()
