"""The benchmark of steps of several tokens, end to end at the smallest size: text, training that is not done twice, rows and their table."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import segments
from lib import rows as lib_rows

SIZES = "--chars 20000 --vocab 280 --dim 16 --heads 2 --layers 1 --steps 4 --batch 2 --length 48 --texts 3 --many 2 --write 8 --minutes 1"


@pytest.fixture
def results(monkeypatch, tmp_path: Path) -> Path:
    words = ["a", "sentence", "of", "words.", "another", "one;", "and", "a", "third!", "what", "is", "it?\n"]
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 60)) for i in range(1, 60)]
    monkeypatch.setitem(segments.TEXTS, "squad", lambda: texts)
    for module in (segments, lib_rows):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(monkeypatch, folder: Path, *more: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["segments.py", "--text", "squad", "--out", str(folder / "out"), *SIZES.split(), *more])
    segments.main()
    path = folder / "segments.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rows_of_every_kind_and_no_training_twice(monkeypatch, results, capsys):
    assert run(monkeypatch, results, "--kinds", "plain,smashed-3,sentence-8", "--train-only") == []
    monkeypatch.setattr(segments, "fit_segments", None)
    found = run(monkeypatch, results, "--kinds", "plain,smashed-3,sentence-8")
    assert [(row["kind"], row["sure"]) for row in found] == [
        ("plain", 2.0), *(("smashed-3", sure) for sure in segments.SURE), ("sentence-8", 2.0),
    ]  # fmt: skip
    by = {(row["kind"], row["sure"]): row for row in found}
    assert by["plain", 2.0]["tokens_a_step"] == by["smashed-3", 2.0]["tokens_a_step"] == 1.0
    assert by["smashed-3", 0.0]["tokens_a_step"] > 2.5 and by["sentence-8", 2.0]["tokens_a_step"] > 1.5
    assert by["smashed-3", 0.0]["write_2"]["layers_a_token"] == pytest.approx(1.0, abs=0.01)  # (1 body + 2 micro layers) / 3 tokens
    assert all(0 < row["nats_a_token"] < 12 and row["num_steps"] == 4 for row in found)
    capsys.readouterr()
    run(monkeypatch, results, "--table")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(found) and len({line.count("|") for line in lines}) == 1


def test_sentences_end_where_they_are_marked():
    assert [segments.is_end(piece) for piece in ("ed.", "\n", "why?", "a\nb", "x", " ", "", ". and")] == [True, True, True, True, *[False] * 4]


def test_docstrings_of_a_package(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text('"""Not this."""')
    (tmp_path / "a.py").write_text('"""A module."""\ndef f():\n    """A function."""\n')
    (tmp_path / "b.py").write_text("def (")
    assert segments.docstrings_under(tmp_path) == ["A module.", "A function."]
    with pytest.raises(SystemExit, match="nor an installed package"):
        segments.texts_of("no_such_package_here")
