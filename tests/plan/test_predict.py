"""Predictions: parts sum to the whole, nothing beats its roofline, units are seconds, more work takes longer."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan.cards import full_card, sheet
from plan.test_roofline import SPARSE, TINY
from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.plan.machine import Curve, Factors, MachineCard
from ponder.plan.predict import attention_terms, ideal_seconds, outline, predict, predict_all, with_factors
from ponder.plan.roofline import GROUPS, Pass, decode_pass, num_weights, operators, prefill_passes

LLAMA_70B = ModelConfig(
    arch="llama", num_layers=80, dim=8192, num_heads=64, num_kv_heads=8, head_dim=128, ffn_dim=28672, vocab_size=128256, context_len=8192,
    norm_eps=1e-5, rope_theta=5e5,
)  # fmt: skip
CARDS = {"sheet": sheet(), "full": full_card(), "one thread": full_card(1)}
passes = st.builds(
    lambda pairs: Pass(tuple(n for n, _ in pairs), tuple(b for _, b in pairs), len(pairs)),
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3000)), min_size=1, max_size=8),
)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@settings(deadline=None)
@given(passed=passes)
def test_parts_sum_to_the_whole_and_none_beats_its_bound(card, passed):
    for config in (TINY, SPARSE):
        found = predict(outline(config, card, "bf16"), passed, card)
        groups = found.by_group()
        assert sum(predicted for _, predicted in groups.values()) == pytest.approx(found.seconds)
        assert sum(ideal for ideal, _ in groups.values()) == pytest.approx(found.ideal)
        assert list(groups) == [g for g in GROUPS if g in groups]
        assert all(part.ideal >= 0 and part.predicted >= 0 for part in found.parts)
        assert found.ideal <= found.seconds


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@settings(deadline=None)
@given(batch=st.integers(1, 63), context=st.integers(1, 4000))
def test_more_takes_longer(card, batch, context):
    seen = outline(TINY, card, "bf16")
    here = predict(seen, decode_pass(batch, context), card)
    for more in (decode_pass(batch + 1, context), decode_pass(batch, 2 * context)):
        there = predict(seen, more, card)
        assert there.seconds >= here.seconds * (1 - 1e-9) and there.ideal >= here.ideal * (1 - 1e-9)


def check_large_model(of) -> None:
    """A 70B in bfloat16 reads 141 GB a token but the embedding's, and computes 2 operations per weight and token."""
    card = sheet()
    one = of(outline(LLAMA_70B, card, "bf16"), [decode_pass(1, 1)], card)
    active = num_weights(LLAMA_70B, is_active=True)
    assert active == pytest.approx(69.5e9, rel=0.01)
    assert one.ideal == pytest.approx(2 * active / 4e12, rel=0.001)  # seconds: memory bounds it
    read = of(outline(LLAMA_70B, card, "bf16"), prefill_passes(1, 4096, 4096), card)
    attention = 80 * 4 * 64 * 128 * 4096 * 4097 / 2
    assert read.ideal - read.by_group()["norms/rope"][0] == pytest.approx(
        (4096 * 2 * (active - 128256 * 8192) + attention) / 1e15, rel=0.001
    )  # arithmetic bounds it
    keys = of(outline(LLAMA_70B, card, "bf16"), [decode_pass(64, 8000)], card).by_group()["attention"][0]
    assert keys == pytest.approx(80 * 64 * 8000 * 2 * 2 * 8 * 128 / 4e12, rel=0.01)


def test_a_large_model_on_another_machine():
    check_large_model(predict_all)


def without_grouped_heads(seen, found, card):
    return predict_all(replace(seen, config=replace(seen.config, num_kv_heads=seen.config.num_heads)), found, card)


def in_bits(seen, found, card):
    return predict_all(replace(seen, weight_nbytes={role: 8 * x for role, x in seen.weight_nbytes.items()}), found, card)


@pytest.mark.parametrize("wrong", [without_grouped_heads, in_bits])
def test_wrong_models_are_caught(wrong):
    with pytest.raises(AssertionError):
        check_large_model(wrong)


def test_a_format_that_the_card_does_not_know():
    with pytest.raises(BadField, match="no weight format 'int3'"):
        outline(TINY, full_card(), "int3")


@settings(deadline=None)
@given(passes)
def test_a_machine_twice_as_fast_takes_half_as_long(passed):
    card = sheet()
    fast = replace(card, bandwidth=tuple((size, 2 * rate) for size, rate in card.bandwidth), peaks={k: 2 * v for k, v in card.peaks.items()})
    seen = outline(TINY, card, "bf16")
    assert predict(seen, passed, fast).seconds == pytest.approx(predict(seen, passed, card).seconds / 2)


def units_by_brute_force(passed: Pass, config: ModelConfig, window: int | None) -> tuple[int, int, int]:
    """(units, blocks, rows in blocks) with every token's keys written out."""
    group, units, blocks, rows = config.num_heads // config.num_kv_heads, 0, 0, 0
    for new, before in zip(passed.new, passed.before):
        tokens = list(range(before, before + new))
        for at in range(0, new, 96 // group):
            some = tokens[at : at + 96 // group]
            keys = {key for p in some for key in range(0 if window is None else max(0, p + 1 - window), p + 1)}
            num = -(-len(keys) // 64) if window is None else -(-min(some[-1] + 1, window + len(some)) // 64)
            units += config.num_kv_heads * len({key // 512 for key in range(some[-1] + 1)}) if window is None else 0
            blocks += config.num_kv_heads * num
            rows += config.num_kv_heads * num * len(some) * group
    return units, blocks, rows


@settings(deadline=None)
@given(passes, st.none() | st.integers(1, 300))
def test_attention_terms_against_brute_force(passed, window):
    _, units, blocks, rows = attention_terms(passed, TINY, window, 1)
    expected = units_by_brute_force(passed, TINY, window)
    assert (blocks, rows) == expected[1:]
    if window is None:
        assert units == expected[0]


@settings(deadline=None)
@given(passes, st.integers(1, 8))
def test_threads_share_units_but_not_less_than_one(passed, threads):
    one, many = attention_terms(passed, TINY, None, 1), attention_terms(passed, TINY, None, threads)
    assert many[1] == pytest.approx(-(-one[1] // threads))
    assert one[2] / threads - 1e-9 <= many[2] <= one[2]


def test_overheads_are_counted_where_they_are():
    card = full_card()
    seen, passed = outline(TINY, card, "bf16"), decode_pass(4, 100)
    groups = predict(seen, passed, card).by_group()
    slow = predict(seen, passed, replace(card, python=(Curve((1, 64), (1.0, 1.0)),))).by_group()
    assert slow["python"][1] == 1.0 and {g: t for g, t in slow.items() if g != "python"} == {g: t for g, t in groups.items() if g != "python"}
    heavy = predict(seen, passed, with_factors(card, seen.name, Factors(attention=2.2, elementwise=3.0, layer=1e-5))).by_group()
    assert heavy["attention"][1] == pytest.approx(2 * groups["attention"][1])
    layered = predict(seen, passed, with_factors(card, seen.name, Factors(attention=1.1, elementwise=3.0, layer=1e-5 + 1.0))).by_group()
    assert layered["norms/rope"][1] == pytest.approx(groups["norms/rope"][1] + TINY.num_layers)
    with pytest.raises(BadField, match="negative"):
        with_factors(card, seen.name, Factors(attention=-1.0))


def test_bounds_by_hand():
    card = MachineCard(name="m", bandwidth=((1e3, 100.0), (1e6, 10.0)), peaks={"float32": 1000.0})
    (op,) = [op for op in operators(outline_by_hand(card), decode_pass(1, 4)) if op.name == "head"]
    assert op.flops == 2 * 32 * 8 and op.weight_bytes == 512
    assert ideal_seconds(op, card, 1e9) == 512 / 10
    assert ideal_seconds(op, card, 10) == 512 / 100
    assert ideal_seconds(op, replace(card, peaks={"float32": 1.0}), 10) == 512


def outline_by_hand(card):
    return outline(TINY, replace(card, weight_nbytes={"bf16": 2.0}), "bf16")
