"""`ponder study` refuses what it cannot honour before a model is opened, and writes its page, rows and pictures."""

import json

import pytest
from typer.testing import CliRunner

from ponder import catalogue
from ponder.cli import studies
from ponder.cli.main import app
from ponder.core.errors import BadField, UnknownName
from ponder.run.question import Question
from ponder.testing.simulator import SimulatedAnswer, Simulator, World

WORLD = World(depth=(2, 2), step_tokens=3)


@pytest.fixture
def simulated(monkeypatch):
    """The verb on simulated problems: no model is opened."""

    def asked(task, split, n):
        return [Question(id=str(i), prompt=WORLD.prompt(i), is_right=lambda text: SimulatedAnswer().read(text) == "0") for i in range(n)]

    monkeypatch.setattr(studies, "questions_of", asked)
    monkeypatch.setattr(studies, "open_named", lambda model, weights, threads, *, device: Simulator(WORLD))
    return ["study", "--tasks", "gsm8k;gsm8k:shots=1", "-n", "5", "--budgets", "1,2", "--strategies", "self_consistency", "--verifiers", "mean_log_p"]


def test_a_study_of_two_tasks(simulated, tmp_path):
    done = CliRunner().invoke(app, [*simulated, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "study.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"gsm8k", "gsm8k:shots=1"} and {r["kind"] for r in rows} >= {"cell", "coverage", "length"}
    page = (tmp_path / "study.md").read_text()
    assert "## gsm8k:shots=1, smollm2-135m" in page and len(list(tmp_path.glob("*.svg"))) == 2
    assert (tmp_path / "gsm8k-shots-1" / "samples.sqlite").exists() and "Better than greedy" in done.output
    again = CliRunner().invoke(app, [*simulated, "--out", str(tmp_path)])
    assert isinstance(again.exception, BadField) and "--resume" in str(again.exception)
    assert CliRunner().invoke(app, [*simulated, "--out", str(tmp_path), "--resume"]).exit_code == 0


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"verifiers": "mean_log"}, UnknownName),
        ({"budgets": "1,two"}, BadField),
        ({"budgets": "0"}, BadField),
        ({"strategies": "self_consistancy"}, UnknownName),
        ({"tasks": "gsm9k"}, UnknownName),
        ({"n": 0}, BadField),
        ({"draw": "warm"}, BadField),
    ],
)
def test_mistakes_are_refused_before_a_model_is_opened(changes, error, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "open_named", lambda *a, device: pytest.fail("a model was opened"))
    given = {
        "tasks": "gsm8k", "strategies": "self_consistency", "verifiers": "mean_log_p", "budgets": "1,2", "n": 2, "model": catalogue.DEFAULT_MODEL,
        "split": "test", "out": tmp_path, "resume": False, "weights": None, "device": "cpu", "seed": 0, "threads": None, "budget": "100 tokens",
        "draw": "temperature=0.8",
    }  # fmt: skip
    with pytest.raises(error):
        studies.study(**(given | changes))
