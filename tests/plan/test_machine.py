"""Cards: kept and read again, refused when they are none; curves between and beyond what was measured."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plan.cards import full_card, sheet
from ponder.core.errors import BadField, StoreError
from ponder.plan.machine import Curve, Factors, MachineCard, SamplerRate, card_path, read_card, save_card


@pytest.mark.parametrize("card", [sheet(), full_card()])
def test_a_card_is_read_as_it_was_written(card, tmp_path):
    save_card(card, tmp_path / "new" / "card.json")
    assert read_card(tmp_path / "new" / "card.json") == card
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["card.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "not json", '{"name": "x", "bandwidth": [[1, 2]], "peaks": {}}', '{"name": "x", "bandwidth": [], "peaks": {"a": 1}}',
             '{"name": "x", "bandwidth": [[1, -2]], "peaks": {"a": 1}}', '{"name": "x", "bandwidth": [[1, 2]], "peaks": {"a": 1}, "colour": "red"}',
             '{"name": "x", "bandwidth": [[1, 2]], "peaks": {"a": NaN}}'],
)  # fmt: skip
def test_what_is_no_card_is_refused(text, tmp_path):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(BadField, match="machine card"):
        read_card(tmp_path / "card.json")


def test_no_file_and_no_room(tmp_path):
    with pytest.raises(BadField, match="No such file"):
        read_card(tmp_path / "nothing.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="PONDER_CACHE"):
        save_card(sheet(), tmp_path / "file" / "card.json")


def test_a_sheet_may_be_short(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"name": "H200", "bandwidth": [[1e6, 4.8e12]], "peaks": {"bfloat16": 989e12}}))
    card = read_card(tmp_path / "card.json")
    assert (card.stream, card.peak) == (4.8e12, 989e12)


def test_the_cache_knows_threads_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path))
    here, threads = card_path(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert card_path() != here and card_path().is_relative_to(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert card_path() == here


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6), st.floats(0.1, 3000))
def test_curves(steps, x):
    xs = tuple(float(4**i) for i in range(len(steps)))
    seconds = tuple(sum(steps[: i + 1]) for i in range(len(steps)))
    curve = Curve(xs, seconds)
    assert [curve.at(x) for x in xs] == pytest.approx(seconds)
    assert curve.at(x) <= curve.at(1.5 * x) * (1 + 1e-12)  # ascending where what was measured ascends
    assert curve.at(10 * xs[-1]) == pytest.approx(10 * seconds[-1])


def test_bandwidth_of_working_sets():
    card = full_card()
    assert card.bandwidth_at(1e3) == 9e10 and card.bandwidth_at(1e12) == 1e10 == card.stream
    assert card.bandwidth_at(1e7) == pytest.approx(4.5e10)


def test_the_nearest_shape_of_the_same_format():
    card = full_card()
    assert card.matrix_rate("bf16", (250, 100)) == card.matrices[1]
    assert card.matrix_rate("int4", (250, 100)) is None
    assert card.nbytes_per_weight("bf16") == 2
    with pytest.raises(BadField, match="no weight format 'int4'; it has bf16"):
        card.nbytes_per_weight("int4")


def test_learning_keeps_what_it_knew_and_prefers_the_new():
    old = full_card()
    sampler = SamplerRate(272, 1.0, Curve((1.0,), (5.0,)))
    matrix = replace(old.matrices[0], out=65)
    new = replace(old, matrices=(matrix,), samplers=(sampler,), factors={"int4 1x1": Factors()})
    learnt = old.learn(new)
    assert set(learnt.matrices) == {*old.matrices, matrix} and learnt.samplers == (sampler,) and set(learnt.factors) == {"bf16 1x1", "int4 1x1"}


def test_roofs_must_be_numbers():
    with pytest.raises(BadField, match="positive numbers"):
        MachineCard(**{**asdict(sheet()), "peaks": {"bfloat16": float("inf")}})


def test_factors_of_a_model_then_of_its_format_then_none():
    card = replace(sheet(), factors={"int4 2x8": Factors(2.0), "int4 4x8": Factors(3.0)})
    assert [card.factors_of(name) for name in ("int4 4x8", "int4 9x9", "int8 4x8")] == [Factors(3.0), Factors(2.0), Factors()]
