"""A model profiled in earnest: what is planted is met, parts sum to the whole, the picture is legible. No absolute time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan.cards import full_card, sheet
from plan.scenes import PLANTED, opened, profiler
from ponder.core.asks import Sampling
from ponder.core.errors import BadField, BadModelFile, PonderError, Unsupported
from ponder.engine.attend import shared_runs
from ponder.plan import plant, profile
from ponder.plan.machine import Factors, read_card
from ponder.plan.measure import MATRIX_ROWS, matrix_rates, measure_model
from ponder.plan.picture import draw_roofline, overlap, place_labels, points_of, profile_points
from ponder.plan.predict import with_factors
from ponder.plan.profile import Cell, Profiler, by_groups, open_card, predict_cell, read_config
from ponder.plan.roofline import Pass, matrix_shapes


@pytest.mark.parametrize("batch, context", [(1, 100), (5, 64), (3, 333)])
def test_planted_sequences_run_as_long_ones(batch, context):
    process = profiler().plain
    asks = plant.planted_asks(process, batch, context, max_tokens=5, sampling=Sampling())
    plant.running(process, asks)
    assert process.count.prompt_tokens == 0, "something was computed that was planted"
    for generated in range(1, 4):
        spans = [span for span, _, _ in process._next_spans()]
        assert [(span.start, span.stop) for span in spans] == [(context + generated - 1, context + generated)] * batch
        assert all(group[4] == -1 for group in shared_runs(spans, True)), "planted sequences share a prefix"
        process.step()
    assert process.count.reused_tokens == batch * context
    plant.clear(process)
    assert process.pool.num_used == plant.num_planted(process), "planting leaks pages"


def test_planted_keys_are_not_all_alike():
    process = profiler().plain
    first, second = (plant.planted_pages(process, i, 200) for i in range(2))
    assert not np.array_equal(first.table, second.table)
    assert len(np.unique(first.table[:, :, :13])) == process.pool.heads * 13
    keys = process.pool.keys[first.table[0, 0, :13].astype(np.int64)].float()
    assert 0.9 < keys.std() < 1.1


@pytest.mark.parametrize("cell", [Cell("decode", 1, 64), Cell("decode", 6, 200), Cell("prefill", 1, 40), Cell("prefill", 3, 300)])
def test_parts_sum_to_the_whole(cell):
    found = profiler().profile(cell, full_card())
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert {"qkv", "attention", "o", "gate_up", "down", "head", "norms/rope", "sampling", "tokenizer"} <= found.parts.keys()
    assert not found.shared, "a plain layer's matrices are timed one by one"
    assert found.error == pytest.approx(found.prediction.seconds / found.seconds - 1)


def test_what_is_computed_together_is_shared_out_whole():
    card = full_card()
    prediction = predict_cell(profiler().outline, Cell("decode", 4, 64), card, 512)
    clocks = {"before": 3.0, "after": 5.0, "attention": 2.0, "norms/rope": 0.5, "head": 1.0, "sampling": 0.25, "python": 0.125}
    parts, shared = by_groups(clocks, prediction)
    assert sum(parts.values()) == pytest.approx(sum(clocks.values()))
    assert shared == {"qkv", "o", "gate_up", "down", "norms/rope"}
    assert parts["attention"] == 2.0 and parts["qkv"] < 3.0 and parts["o"] + parts["gate_up"] + parts["down"] < 5.0
    assert parts["gate_up"] > parts["o"]


def test_prefill_reads_every_prompt_token():
    seen = profiler()
    before = seen.plain.count.prompt_tokens
    seen.measure(Cell("prefill", 3, 100), num=2)
    assert seen.plain.count.prompt_tokens - before == 2 * 3 * 100


BAD = [
    (Cell("decode", 1, 600), "at most 448 of this model's 512 tokens"),
    (Cell("decode", 257, 64), "at most 256 sequences"),
    (Cell("prefill", 64, 300), "at most 8192 are read"),
]


@pytest.mark.parametrize("cell, says", BAD)
def test_what_cannot_be_measured_is_refused(cell, says):
    with pytest.raises(BadField, match=says):
        profiler().measure(cell)


@pytest.mark.parametrize("make", [lambda: Cell("decode", 0, 5), lambda: Cell("prefill", 1, 0), lambda: Cell("train", 1, 5)])
def test_bad_cells(make):
    with pytest.raises(BadField, match="at least 1"):
        make()


def test_rates_of_every_matrix():
    seen = profiler()
    rates = list(matrix_rates(seen.plain, seen.outline, full_card()))
    assert [(r.out, r.into) for r in rates] == [(160, 96), (96, 96), (256, 96), (96, 128), (272, 96)]
    assert all(r.curve.x == tuple(MATRIX_ROWS)[: len(r.curve.x)] and min(r.curve.seconds) > 0 for r in rates)
    assert all(r.nbytes == pytest.approx(2 * r.out * r.into) for r in rates)


def with_shapes_of(process, outline, card):
    """What measuring the model's kernels would add, without measuring."""
    rates = tuple(replace(card.matrices[0], out=out, into=into) for out, into in matrix_shapes(outline.config).values())
    return replace(card, matrices=rates)


def test_a_card_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path))
    monkeypatch.setattr(profile, "measure_machine", full_card)
    monkeypatch.setattr(profile, "measure_model", with_shapes_of)
    monkeypatch.setattr(profile, "CALIBRATION", (Cell("decode", 1, 64), Cell("decode", 8, 64)))
    seen, told = profiler(), []
    card = open_card(seen, tell=told.append)
    both = ["measuring the machine", "measuring the model's kernels"]
    assert told == both
    (path,) = (tmp_path / "machines").iterdir()
    assert read_card(path) == card == open_card(seen, tell=told.append) and told == both
    path.write_text("{")
    assert open_card(seen, tell=told.append).factors.keys() == card.factors.keys() and told == 2 * both
    open_card(seen, is_fresh=True, tell=told.append)
    assert told == 3 * both
    other = Profiler(opened(), replace(seen.outline, weights="int4"), PLANTED)
    open_card(other, tell=told.append)
    assert told == [*3 * both, both[1]] and read_card(path).factors.keys() == {"bf16 1x1", "bf16 3x96", "int4 3x96"}


def test_a_model_is_measured():
    seen = profiler()
    card = measure_model(seen.plain, seen.outline, sheet())
    assert {(r.format, r.out, r.into) for r in card.matrices} == {
        ("bf16-head" if s[0] == 272 else "bf16", *s) for s in matrix_shapes(seen.outline.config).values()
    }
    assert card.attentions[0].group == 3 and card.attentions[0].width == 16 and card.texts[0].vocab == 272
    assert {(r.vocab, r.top_p < 1) for r in card.samplers} == {(272, True), (272, False)}
    assert all(x > 0 for rate in (card.texts[0],) for x in (rate.characters, rate.encoded, rate.decoded))
    assert sum(vars(card.attentions[0]).values()) > 3 + 16
    found = predict_cell(seen.outline, Cell("decode", 3, 64), card, 512)
    assert all(found.by_group()[group][1] > 0 for group in ("attention", "head", "python", "sampling", "tokenizer"))


TRUE = Factors(attention=1.7, elementwise=4.0, layer=3e-5)


@pytest.mark.parametrize("is_fused", [False, True])
def test_calibration_finds_what_made_the_data(monkeypatch, is_fused):
    seen, card = profiler(), full_card()
    cells = (Cell("decode", 1, 64), Cell("decode", 24, 64), Cell("decode", 2, 400), Cell("prefill", 1, 300))

    def clocks(cell, num=5):
        groups = {group: seconds for group, (_, seconds) in seen.predict(cell, with_factors(card, seen.outline.name, TRUE)).by_group().items()}
        if not is_fused:
            return groups
        groups["before"] = groups.pop("qkv") + 0.4 * groups["norms/rope"]
        groups["after"] = sum(groups.pop(name) for name in ("o", "gate_up", "down")) + 0.5 * groups["norms/rope"]
        return groups | {"norms/rope": 0.1 * groups["norms/rope"]}

    monkeypatch.setattr(seen, "measure", clocks)
    factors = seen.calibrate(card, cells).factors[seen.outline.name]
    assert vars(factors) == pytest.approx(vars(TRUE), rel=1e-6)
    with pytest.raises(AssertionError):
        assert vars(seen.calibrate(replace(card, threads=1), cells).factors[seen.outline.name]) == pytest.approx(vars(TRUE), rel=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(200, 800), st.floats(150, 450)), min_size=1, max_size=16))
def test_labels_overlap_nothing(points):
    sizes = [(70.0, 14.0)] * len(points)
    taken = [(900.0, 0.0, 1000.0, 100.0)]
    frame = (0.0, 0.0, 1000.0, 600.0)
    boxes = [(x - 35, y - 7, x + 35, y + 7) for x, y in place_labels(points, sizes, taken, frame)]
    marks = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in (*boxes[:i], *taken, *marks))
    assert all(left >= 0 and right <= 1000 and bottom >= 0 and top <= 600 for left, bottom, right, top in boxes)


def test_picture(tmp_path):
    seen = profiler()
    profiles = [seen.profile(cell, full_card()) for cell in (Cell("decode", 2, 64), Cell("prefill", 1, 64))]
    points = profile_points(profiles)
    assert {p.name for p in points} == {"qkv", "attention", "o", "gate_up", "down", "head", "norms/rope"}
    draw_roofline(points, full_card(), tmp_path / "new" / "a.png", title="tiny")
    assert (tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "file").write_text("")
    with pytest.raises(PonderError, match="another --out"):
        draw_roofline(points, full_card(), tmp_path / "file" / "a.png", title="tiny")


def test_points_lie_below_both_roofs_when_predicted():
    card = sheet()
    outline = profiler().outline
    for point in points_of("decode", predict_cell(outline, Cell("decode", 4, 64), card, 512)):
        assert point.rate <= min(card.peak, point.intensity * card.stream) * (1 + 1e-9)


@pytest.mark.parametrize("text, error", [("[]", BadModelFile), ("{", BadModelFile), ('{"architectures": ["GPT2LMHeadModel"]}', Unsupported)])
def test_what_is_no_config(text, error, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match="config"):
        read_config(tmp_path / "config.json")


def test_passes_of_cells():
    assert Cell("decode", 3, 7).passes(512) == [Pass((1, 1, 1), (7, 7, 7), 3)]
    assert [p.new for p in Cell("prefill", 2, 300).passes(512)] == [(300, 212), (88,)]


def test_what_was_timed_alone_is_not_shared_out():
    prediction = predict_cell(profiler().outline, Cell("decode", 4, 64), full_card(), 512)
    parts, shared = by_groups({"qkv": 1.0, "o": 2.0, "experts": 4.0, "norms/rope": 0.5, "attention": 1.0}, prediction)
    assert (parts["qkv"], parts["o"]) == (1.0, 2.0) and shared == {"gate_up", "down", "norms/rope"}
    assert sum(parts.values()) == pytest.approx(8.5)
