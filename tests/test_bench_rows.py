"""A row can be written wherever a benchmark's files lie, and names no folder of the machine that it ran on."""

import importlib
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def rows(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    module = importlib.import_module("lib.rows")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_a_row_tells_of_files_here_by_their_path_and_of_others_by_their_name(rows, monkeypatch, tmp_path):
    here = Path.cwd()
    monkeypatch.setattr(sys, "argv", [str(here / "benchmarks/tail.py"), "train", "--text", str(tmp_path / "text.pt"), "--start", "0.5"])
    rows.append("some", {"figure": 1})
    (line,) = (tmp_path / "results/some.jsonl").read_text().splitlines()
    assert json.loads(line)["command"] == "python benchmarks/tail.py train --text text.pt --start 0.5"
    assert str(tmp_path) not in line
