"""The benchmark of code completion: what is right, what is beside what, and what counts as a layer."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import code_completion as completion


def test_rouge_is_f1_of_the_longest_common_subsequence():
    assert completion.rouge_l("a b c", "a b c") == 1.0
    assert completion.rouge_l("a x c", "a b c d") == pytest.approx(2 * 2 / 7)
    assert completion.rouge_l("", "a") == completion.rouge_l("c", "a b") == 0.0


def record(problem: str, cut: int, *, lines: int, is_right: bool, rouge: float, tokens: int, taken: int = 0) -> completion.Record:
    return {
        "setting": "x", "problem": problem, "cut": f"{problem} line {cut}", "lines": lines, "is_right": is_right, "rouge_l": rouge, "tokens": tokens,
        "taken": taken, "drafted": taken, "passes": tokens - taken, "draft_passes": taken, "behind": 30 * tokens - 10 * taken,
        "depth": 30 * (tokens - taken) + 20 * taken, "work": 30 * tokens + 20 * taken, "cpu_seconds": 0.1 * (tokens - taken),
    }  # fmt: skip


FULL = [
    record("a", 0, lines=2, is_right=True, rouge=1.0, tokens=10), record("a", 1, lines=2, is_right=False, rouge=0.2, tokens=30),
    record("b", 0, lines=1, is_right=False, rouge=0.3, tokens=20),
]  # fmt: skip


def test_of_what_is_shown_and_beside_full_decoding():
    stopped = [FULL[0], record("a", 1, lines=0, is_right=False, rouge=0.0, tokens=5), record("b", 0, lines=1, is_right=False, rouge=0.3, tokens=20)]
    found = completion.summary(stopped, FULL)
    assert found["shown"][0] == pytest.approx(2 / 3, abs=1e-4) and found["acceptance"][0] == 0.5 and found["rouge_l"][0] == pytest.approx(0.65)
    assert found["tokens_beside_full"][0] == pytest.approx(35 / 60, abs=1e-4) and found["num_problems"] == 2
    full = completion.summary(FULL, FULL)
    assert full["acceptance"][0] == pytest.approx(1 / 3, abs=1e-4) and full["tokens_beside_full"] == (1.0, 1.0, 1.0)
    low, high = found["acceptance"][1:]
    assert low == 0.0 and high == 1.0  # by problems: one is all right, the other all wrong


def test_layers_behind_a_token_and_those_waited_for():
    early = [record("a", 0, lines=2, is_right=True, rouge=1.0, tokens=10, taken=5)]
    found = completion.summary(early, FULL[:1])
    assert (found["layers_a_token"][0], found["depth_a_token"][0], found["work_a_token"][0]) == (25.0, 25.0, 40.0)
    assert found["depth_beside_full"][0] == pytest.approx(25 / 30, abs=1e-4) and found["cpu_beside_full"][0] == 0.5


def test_tables_have_a_cell_for_every_heading():
    lines = list(completion.table([{"setting": "full"} | completion.summary(FULL, FULL)]))
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 3
