"""The benchmark of speculation: what its page says of rows, how peers' tokens are counted, which questions it asks."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
page, peers, questions = (importlib.import_module(f"speculation.{name}") for name in ("page", "peers", "questions"))

RUN = {
    "run": "2026-01-02 03:04:05",
    "model": "m",
    "temperature": 0.0,
    "clock": "wall",
    "commit": "c",
    "machine": "x",
    "load": 0.1,
    "new": 64,
    "command": "go",
}


def ours(setting, category, speed_up, accepted=0.5, num=1, **other):
    figures = {"tokens_per_s": 10 * speed_up, "speed_up": speed_up, "accepted_per_round": accepted, "drafted_per_round": 2.0, "wasted_per_round": 1.5}
    row = {"kind": "ours", "category": category, "num": num, "setting": setting, "rounds": 10, "draft_ms_per_round": 0.1, "same_as_plain": True}
    return {**RUN, **row, **figures, **other}


ROWS = [
    {**RUN, "kind": "width", "seconds": {"1": 1.0, "5": 1.25}},
    ours("plain", "edit", 1.0), ours("plain", "math", 1.0),
    ours("trie / coupled / cost", "edit", 4.0), ours("trie / coupled / cost", "math", 1.0, same_as_plain=False),
    ours("ngram / coupled / cost", "edit", 2.0), ours("ngram / coupled / cost", "math", 1.9),
    {**RUN, "kind": "peer", "category": "edit", "num": 1, "setting": "llama.cpp plain", "tokens_per_s": 7.0},
    {**RUN, "kind": "peer", "category": "math", "num": 1, "setting": "llama.cpp plain", "missing": "it fell over"},
]  # fmt: skip


def test_the_page_says_what_rows_say():
    text = page.page(page.shown_runs(ROWS))
    assert "| trie / coupled / cost | 4.00 (0.50) | 1.00 (0.50) | **2.00** | 1.00 |" in text  # the geometric mean: 2.5 would be the other
    assert "| trie / coupled / cost | 20 | 0.50 | 2.00 | 1.50 | 0.10 | 1 of 2 categories |" in text
    assert "5 rows 1.25 x" in text and "| llama.cpp plain | 7 | - |" in text and "- Not measured: llama.cpp plain: it fell over" in text
    assert "| ours, trie / coupled / cost | 40 | 10 |" in text  # of both the better mean


def test_the_latest_run_is_shown():
    old = [{**row, "run": "2025-01-01 00:00:00", "commit": "old"} for row in ROWS]
    assert page.page(page.shown_runs(old + ROWS)) == page.page(page.shown_runs(ROWS))
    assert "commit old" in page.page(page.shown_runs(old + [{**r, "model": "other"} for r in ROWS]))


def test_no_peer_and_no_rows_are_said():
    assert "No rows yet" in page.page({})
    assert "No peer was measured." in page.page(page.shown_runs([r for r in ROWS if r["kind"] != "peer"]))


def test_a_picture_is_drawn(tmp_path):
    page.draw(ROWS, "t", tmp_path / "a.svg")
    page.draw(ROWS, "t", tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_peers_are_counted_from_when_all_have_begun():
    reply = {"counts": [4, 4], "times": [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]}
    assert peers.figures([reply])["tokens_per_s"] == pytest.approx(5 / 3, rel=1e-3)
    drafted = {"counts": [9], "times": [[1.0, 2.0]]}  # texts that held several tokens
    assert peers.figures([drafted])["tokens_per_s"] == pytest.approx(8.0)
    assert peers.figures([{"counts": [1], "times": [[1.0]]}])["tokens_per_s"] is None


def test_a_follow_up_holds_the_answer_that_it_changes():
    asked = questions.questions("followup", 3)[2]
    again = asked.second_turn("my words")
    assert [role for role, _ in again.messages] == ["user", "assistant", "user"] and again.messages[1][1] == "my words" and not again.change
    assert {q.category for q in questions.questions("followup", 99)} == {"followup"}


def test_settings_take_turns_in_one_process():
    """Every drafter of the catalogue on a tiny model: plain decoding's tokens, counted rounds, and a warm start that is a copy."""
    from engine.tiny_models import tiny_decoder, tiny_process
    from ponder import catalogue
    from ponder.core.asks import GREEDY, Prompt

    ours = importlib.import_module("speculation.ours")
    runner = ours.Ours(tiny_process(tiny_decoder("llama")))
    prompts = [Prompt(messages=(("raw", text),), max_tokens=24) for text in ("abcabcabcabc", "hello hello hello")]
    coupled, fixed = catalogue.ACCEPTORS["coupled"], catalogue.LENGTHS["fixed"]
    plain = runner.answer(prompts, GREEDY, runner.use(None, coupled, fixed))
    for spec in ("ngram", "copyspec", "trie", "token_recycling", "copy_or_recycle", "trie:over=session", "token_recycling:over=session"):
        drafter = catalogue.speculation(spec).drafter
        turn = runner.answer(prompts, GREEDY, runner.use(drafter, coupled, fixed))
        assert turn.tokens == plain.tokens, spec
        assert turn.tally.rounds + turn.tally.accepted == turn.num_after and 0 <= turn.tally.accepted <= turn.tally.drafted
    learned = runner.learned(drafter, coupled, fixed, prompts)
    warm = [runner.answer(prompts, GREEDY, runner.use(drafter, coupled, fixed, learned=learned)) for _ in range(2)]
    assert warm[0].tally.accepted == warm[1].tally.accepted >= turn.tally.accepted
    assert set(runner.cost_of_width(prompts[0], (1, 3), coupled, replace(fixed, num=9))) == {1, 3}
