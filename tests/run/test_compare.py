"""A comparison folder: byte-identical after kill -9, refuses what does not fit, honest figures."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ponder.cli.show import limit_lines
from ponder.core.asks import Candidate, Prompt, Verdict
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BadField, PonderError, StoreError
from ponder.infer.greedy import Greedy
from ponder.infer.sample import Sample
from ponder.run.compare import Comparison, Row, RunFolder, compare, score, settings_of
from ponder.run.plot import plot_quality, side_by_side
from ponder.run.question import Question
from ponder.run.recipe import Recipe, Result
from ponder.run.report import Limit, interval, summarize
from ponder.testing.toy import ToyProcess, toy_lm

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_compare import prepare
from ponder.run.compare import RunFolder, compare, settings_of
from ponder.testing.toy import ToyProcess, toy_lm

class Slow(ToyProcess):
    def step(self):
        time.sleep(0.002)
        return super().step()

process, recipes, questions = prepare(Slow(toy_lm()))
folder = RunFolder(Path(sys.argv[1]), settings_of(process, recipes, questions, task="toy", seed=7)).open(resume=True)
compare(process, recipes, questions, folder=folder, seed=7, max_jobs=3)
folder.close()
print("complete")
"""


def prepare(process=None, num=12):
    budget = Budget(tokens=60)
    recipes = [Recipe(label="greedy", strategy=Greedy(), budget=budget), Recipe(label="sample:num=6", strategy=Sample(num=6), budget=budget)]
    questions = [
        Question(id=str(i), prompt=Prompt(messages=(("raw", "ab"[: i % 3]),), max_tokens=12), is_right=lambda text: text.count("a") > 2)
        for i in range(num)
    ]
    return process or ToyProcess(toy_lm()), recipes, questions


def run(path, *, resume=False, **changes):
    process, recipes, questions = prepare()
    folder = RunFolder(path, settings_of(process, recipes, questions, task="toy", seed=7)).open(resume=resume)
    try:
        return compare(process, recipes, questions, folder=folder, seed=7, **changes)
    finally:
        folder.close()


def bytes_of(path):
    return [(path / name).read_bytes() for name in ("run.json", "results.jsonl", "trace.jsonl")]


def test_kill_9_at_any_moment_then_resume_gives_the_same_bytes(tmp_path):
    run(tmp_path / "whole")
    draw = random.Random(0)
    script = WORKER.format(tests=str(Path(__file__).parent))
    kills = 0
    for trial in range(4):
        out = tmp_path / f"cut{trial}"
        for _ in range(3):
            worker = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 60
            while not (out / "samples.sqlite").exists() and worker.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.25))
            worker.send_signal(signal.SIGKILL)
            kills += worker.wait() == -signal.SIGKILL
            worker.stdout.close()
        done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, timeout=120)
        assert done.stdout == "complete\n", done.stderr
        assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert kills >= 4, "the kills came too late to test anything"


def test_resume_of_a_finished_run_computes_nothing(tmp_path):
    run(tmp_path)
    before = bytes_of(tmp_path)
    again = run(tmp_path, resume=True)
    assert all(ledger.steps == 0 for ledger in again.ledgers.values())
    assert bytes_of(tmp_path) == before


def test_recipes_that_draw_the_same_samples_share_them(tmp_path):
    process, recipes, questions = prepare()
    recipes = [recipes[1], Recipe(label="twice", strategy=Sample(num=3), budget=recipes[1].budget)]
    folder = RunFolder(tmp_path, settings_of(process, recipes, questions, task="toy", seed=7)).open(resume=False)
    ledgers = compare(process, recipes, questions, folder=folder, seed=7).ledgers
    folder.close()
    assert ledgers["twice"].stored_answers > 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert all(row["tokens"] > 0 for row in rows), "a shared sample must still be booked"


def test_stopping_early_keeps_whole_rows(tmp_path):
    calls = iter(range(10**9))
    stopped = run(tmp_path, should_stop=lambda: next(calls) > 25)
    assert not stopped.is_complete
    whole = run(tmp_path, resume=True)
    assert whole.is_complete and len(whole.rows) == 24


def test_folders_are_not_overwritten_or_mixed(tmp_path):
    run(tmp_path)
    with pytest.raises(BadField, match="--resume"):
        run(tmp_path)
    process, recipes, questions = prepare()
    with pytest.raises(BadField, match="other settings \\(seed, task\\)"):
        RunFolder(tmp_path, settings_of(process, recipes, questions, task="other", seed=8)).open(resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out"):
        RunFolder(tmp_path / "file", {}).open(resume=False)
    with pytest.raises(BadField, match="named twice"):
        compare(process, recipes[:1] * 2, questions, folder=RunFolder(tmp_path, {}))
    with pytest.raises(PonderError, match="nothing to compare"):
        compare(process, recipes, [], folder=RunFolder(tmp_path, {}))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_names_the_file_and_the_mend(tmp_path):
    process, recipes, questions = prepare()
    folder = RunFolder(tmp_path, settings_of(process, recipes, questions, task="toy", seed=7)).open(resume=False)
    folder.files["results"].close()
    with open("/dev/full", "w") as full:  # noqa: PTH123
        folder.files["results"] = full
        with pytest.raises(StoreError, match=r"results.jsonl.*--resume"):
            compare(process, recipes, questions, folder=folder, seed=7)
        folder.close()
    assert run(tmp_path, resume=True).is_complete


def row(recipe, question, right, tokens=10, oracle=None, values=()):
    result = Result(answer=None, candidates=(), confidence=None, cost=Cost(generated_tokens=tokens), stop_reason="done")
    return Row(
        recipe=recipe, question=str(question), right=right, oracle=right if oracle is None else oracle, candidates=1, values=values, result=result
    )


def test_figures_are_what_they_say():
    base = [row("a", q, q % 2 == 0, tokens=10) for q in range(40)]
    better = [row("b", q, q % 4 != 3, tokens=30, oracle=True, values=((0.9, True), (0.1, False))) for q in range(40)]
    one, two = summarize(Comparison(recipes=("a", "b"), rows=(*base, *better), ledgers={}, is_complete=True))
    assert (one.accuracy, one.gain, one.tokens_per_correct) == (0.5, 0.0, 20.0)
    assert (two.accuracy, two.gain, two.oracle, two.tokens_per_correct, two.verifier_auroc) == (0.75, 0.25, 1.0, 40.0, 1.0)
    assert two.gain_low > 0 and two.verdict == "better" and one.verdict == "no difference shown"
    assert one.accuracy_low < 0.5 < one.accuracy_high


def test_a_verifier_s_mistakes_have_their_ceiling():
    """One candidate in four is accepted: half of the accepted are right. Rates 1/4 everywhere, so that is the ceiling too."""
    values = [((0.9, q % 2 == 0), (0.5, False), (0.4, False), (0.3, q % 2 == 1)) for q in range(40)]
    rows = [row("fooled", q, q % 2 == 0, values=values[q]) for q in range(40)]
    (found,) = summarize(Comparison(recipes=("fooled",), rows=tuple(rows), ledgers={}, is_complete=True))
    assert found.limit == Limit(4, pytest.approx(20 / 120), 0.5, pytest.approx(0.5))
    (line,) = limit_lines([found])
    assert "one answer in 4" in line and "17 % of the wrong and 50 % of the right" in line and "end at 50 % right" in line
    blind = [row("a", 0, True), row("a", 1, True, values=((0.5, True),))]
    assert summarize(Comparison(recipes=("a",), rows=tuple(blind), ledgers={}, is_complete=True))[0].limit is None


def test_the_interval_covers_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = [low <= 0.4 <= high for low, high in (interval((draw.random(60) < 0.4).astype(float), 1) for _ in range(300))]
    assert 0.90 <= np.mean(covered) <= 0.985
    assert interval(np.array([]), 0) == (0.0, 0.0)


def test_rows_score_each_text_once():
    seen = []
    question = Question(id="q", prompt=Prompt(messages=(("raw", ""),)), is_right=lambda text: bool(seen.append(text)) or text == "yes")
    candidates = (Candidate("no", None), Candidate("yes", None, verdicts=(Verdict(0.3),)), Candidate("no", None, verdicts=(Verdict(None),)))
    result = Result(answer=None, candidates=candidates, confidence=None, cost=Cost(), stop_reason="done")
    got = score("r", question, result)
    assert (got.right, got.oracle, got.values) == (False, True, ((0.3, True),)) and sorted(seen) == ["no", "yes"]
    assert score("r", question, replace(result, candidates=())).right is False


def test_the_plot_is_a_picture(tmp_path):
    rows = [row("a", 0, True), row("b", 0, False, tokens=500)]
    plot_quality(summarize(Comparison(recipes=("a", "b"), rows=tuple(rows), ledgers={}, is_complete=True)), tmp_path / "p.png", title="t")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(PonderError, match="--out"):
        plot_quality(summarize(Comparison(recipes=("a",), rows=tuple(rows), ledgers={}, is_complete=True)), tmp_path / "no" / "p.png", title="t")


def test_marks_at_equal_cost_do_not_cover_each_other():
    assert side_by_side([100.0, 300.0, 200.0]) == [100.0, 300.0, 200.0]
    places = side_by_side([380.0, 100.0, 381.0, 380.0])
    assert places[1] == 100.0 and sorted(places)[1] == 380.0
    assert all(b >= 1.04 * a - 1e-9 for a, b in zip(sorted(places), sorted(places)[1:], strict=False))
