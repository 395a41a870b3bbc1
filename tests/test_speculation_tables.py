"""The hand-written part of docs/speculation.md holds what its rows say."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import speculation_tables


def test_the_page_is_what_its_rows_say():
    text = speculation_tables.PAGE.read_text(encoding="utf-8")
    assert {match[1] for match in speculation_tables.BLOCK.finditer(text)} == set(speculation_tables.TABLES)
    assert speculation_tables.filled(text) == text


def test_tables_are_made_of_the_newest_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(speculation_tables, "RESULTS", tmp_path)
    page = "a\n<!-- rows: griffin -->\nold\n<!-- end -->\nb\n"
    assert speculation_tables.filled(page) == page.replace("old", "Not measured yet.")
    rows = [
        {
            "model": "m", "command": command, "date": "d", "commit": "c", "machine": "x", "n": 2, "new": 8, "draft": draft, "drafted": 8 * num,
            "accepted": 4 * num, "accepted_a_round": num, "ms_a_token": 1.5, "speed_up": 0.9, "equal": 2,
        }
        for command, num in (("old griffin", 1), ("new griffin", 2), ("other", 3)) for draft in (None, "griffin")
    ]  # fmt: skip
    (tmp_path / "draft_passes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = speculation_tables.filled(page)
    assert "| griffin | 50.0% | 2 | 1.5 | 0.9 | 2 of 2 |" in made and "old" not in made and "other" not in made
    with pytest.raises(KeyError):
        speculation_tables.filled("<!-- rows: nothing -->\n<!-- end -->")
