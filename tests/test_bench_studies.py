"""Benchmarks of studies: what a regime sets in a strategy, the table of rankings, and grids that can be built."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import simulated

import study
from ponder import catalogue
from ponder.core.budget import Budget
from ponder.study.grid import recipes_of


def test_a_regime_sets_the_fields_that_a_strategy_has():
    verifier = simulated.REGIMES["weak tests"].verifier
    filtered, greedy, one = (simulated.fitted(catalogue.STRATEGIES[n], verifier) for n in ("particle_filter", "greedy", "sample"))
    assert (filtered.verifier, filtered.num, filtered.until) == (verifier, simulated.SAMPLES, ("\n",))
    assert greedy == catalogue.STRATEGIES["greedy"] and one.num == 1


def test_rankings_are_those_of_the_newest_rows(tmp_path, monkeypatch):
    context = {"commit": "c", "machine": "m", "n": 10, "error": 0.1, "tokens": 5.0}
    rows = [
        context | {"run": run, "regime": "weak tests", "strategy": name, "accuracy": accuracy}
        for run, name, accuracy in (("1", "old", 0.9), ("2", "good", 0.8), ("2", "poor", 0.2))
    ]
    rows.append({"run": "2", "regime": "weak tests", "strategy": "strange", "n": 10, "refused": "no"} | {"commit": "c", "machine": "m"})
    (tmp_path / "simulated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(simulated, "RESULTS", tmp_path)
    text = simulated.section()
    assert "80.0 +- 10.0 (1), 5" in text and "20.0 +- 10.0 (2), 5" in text
    assert text.index("`good`") < text.index("`poor`") and "old" not in text and "strange" not in text


@pytest.mark.parametrize("name", study.STUDIES)
def test_grids_can_be_built(name):
    cells = recipes_of(study.STUDIES[name].grid, catalogue.SPECS, Budget(tokens=100))
    assert len(cells) > 10 and next(iter(cells)) == "greedy"


def test_a_target_is_judged_on_the_questions_of_all_its_studies(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "folder_of", lambda name: tmp_path / name)
    for name, right in (("humaneval", (True, True, False)), ("mbpp", (True, False))):
        (tmp_path / name).mkdir()
        rows = [{"recipe": "new", "question": str(q), "right": ok, "tokens": 30} for q, ok in enumerate(right)]
        rows += [{"recipe": "old", "question": str(q), "right": q == 2, "tokens": 10} for q in range(len(right))]
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = study.Target(about="a", studies=("humaneval", "mbpp"), cell="new", against="old", points=30)
    found = study.judge(target)
    assert (found["n"], found["gain"][0], found["share"], found["met"], found["sure"]) == (5, 40.0, 3.0, "met", False)
    dear = study.judge(study.Target(about="a", studies=("mbpp",), cell="new", against="old", points=30, share=0.5))
    assert dear["met"] == "missed", "it gained, but for too many tokens"
    text = study.target_lines([found | {"run": "1"}, dear | {"run": "2"}])
    assert "missed" in text and "+40.0" not in text and study.target_lines([]) == ""
