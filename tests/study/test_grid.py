"""A study survives kill -9 with the same bytes, computes nothing twice, and its rows say what its samples say."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ponder import catalogue
from ponder.core.asks import Candidate, Verdict
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BadField, StoreError
from ponder.run.compare import Comparison, Row
from ponder.run.question import Question, Scores
from ponder.run.recipe import Result
from ponder.run.report import summarize
from ponder.study.figures import against_best_of_n, cell_row, figure_rows, pools_of
from ponder.study.grid import Grid, recipes_of, run_grid
from ponder.study.page import newest, page_text, picture_name
from ponder.study.plots import draw_study, families
from ponder.testing.simulator import SimulatedAnswer, Simulator, World

WORLD = World(depth=(2, 2), step_tokens=3, step_accuracy=0.7)
GRID = Grid(strategies=("self_consistency", "particle_filter:num=2"), verifiers=("mean_probability", "mean_log_p"), budgets=(1, 2, 4))
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_grid import WORLD, Simulator, played

class Slow(Simulator):
    def step(self):
        time.sleep(0.003)
        return super().step()

played(Path(sys.argv[1]), Slow(WORLD), resume=True)
print("complete")
"""
CONTEXT = {"task": "toy", "model": "m", "split": "test", "seed": 0, "run": "1", "commit": "c", "machine": "x", "command": "ponder study"}


def questions(num=6):
    def is_right(text):
        return SimulatedAnswer().read(text) == "0"

    return [Question(id=str(i), prompt=WORLD.prompt(i), is_right=is_right) for i in range(num)]


def played(out, process=None, *, resume=False, grid=GRID):
    cells = recipes_of(grid, catalogue.SPECS, Budget(tokens=5000))
    return run_grid(process or Simulator(WORLD), cells, questions(), out=out, task="toy", seed=0, resume=resume)


def bytes_of(out):
    return [(out / name).read_bytes() for name in ("run.json", "results.jsonl", "trace.jsonl")]


def test_cells_cross_what_specs_leave_open():
    cells = GRID.cells(catalogue.SPECS)
    assert cells[:2] == ("greedy", GRID.pool_cell) == ("greedy", "sample:temperature=0.8,num=4")
    assert [c for c in cells if c.startswith("self_consistency")] == [f"self_consistency:num={n}" for n in (1, 2, 4)]
    assert [c for c in cells if "particle" in c] == [f"particle_filter:num=2,verifier={v}" for v in GRID.verifiers]
    assert sum(c.startswith("best_of_n") for c in cells) == 6 and len(set(cells)) == len(cells)
    warm = replace(GRID, draw="temperature=0.5,top_p=0.9", strategies=("self_consistency:num=4,temperature=1.5", "rpc:num=4", "beam"))
    assert warm.cells(catalogue.SPECS)[:2] == ("greedy", warm.pool_cell) == ("greedy", "sample:temperature=0.5,top_p=0.9,num=4")
    drawn = {"self_consistency:num=4,temperature=1.5,top_p=0.9", "rpc:num=4,temperature=0.5,top_p=0.9", "beam"}
    assert drawn < set(warm.cells(catalogue.SPECS)) and "best_of_n:verifier=mean_log_p,num=1,temperature=0.5,top_p=0.9" in warm.cells(catalogue.SPECS)
    with pytest.raises(BadField, match="draw='hot'"):
        replace(GRID, draw="hot")
    with pytest.raises(BadField, match="at least one verifier"):
        Grid(strategies=(), verifiers=(), budgets=(1,))


def test_kill_9_then_resume_gives_the_same_bytes(tmp_path):
    found, scored = played(tmp_path / "whole")
    wanted = figure_rows(found, scored, GRID)
    draw, kills = random.Random(1), 0
    script = WORKER.format(tests=str(Path(__file__).parent))
    out = tmp_path / "cut"
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (out / "samples.sqlite").exists() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.05, 0.4))
        worker.send_signal(signal.SIGKILL)
        kills += worker.wait() == -signal.SIGKILL
        worker.stdout.close()
    again, scored = played(out, resume=True)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert figure_rows(again, scored, GRID) == wanted
    assert kills >= 2, "the kills came too late to test anything"


def test_a_second_run_and_another_vote_compute_nothing(tmp_path):
    played(tmp_path)
    again, _ = played(tmp_path, resume=True)
    assert all(ledger.steps == 0 for ledger in again.ledgers.values())
    (tmp_path / "run.json").unlink()  # another grid over the same samples: other votes, other verifiers
    other = replace(GRID, strategies=("self_consistency:weigh=path_probability",), verifiers=("self_certainty",))
    free, _ = played(tmp_path, grid=other)
    assert all(ledger.steps == 0 for ledger in free.ledgers.values())
    assert sum(ledger.stored_answers for ledger in free.ledgers.values()) > 0


def test_texts_are_scored_once_in_all_runs(tmp_path):
    path, seen = tmp_path / "scores.jsonl", []
    question = Question(id="q", prompt=WORLD.prompt(0), is_right=lambda text: bool(seen.append(text)) or text == "yes")
    first = Scores(path).open().of(question)
    assert [first.is_right(t) for t in ("yes", "no", "yes")] == [True, False, True] and seen == ["yes", "no"]
    with path.open("a") as file:
        file.write('["cut off')  # by a kill
    second = Scores(path).open().of(question)
    assert [second.is_right(t) for t in ("no", "yes")] == [False, True] and seen == ["yes", "no"]
    assert second.is_right("new") is False and len(path.read_text().splitlines()) == 3
    path.write_text("nonsense\n")
    with pytest.raises(StoreError, match="move it away"):
        Scores(path).open()


def row(cell, question, right, *, tokens, values=(), ties=None, said=None):
    verdicts = () if said is None else (Verdict(said, "probability"),)
    candidates = (Candidate("a", "a", tokens=(1,), verdicts=verdicts),)
    result = Result(
        answer=None, candidates=candidates, confidence=None, cost=Cost(generated_tokens=tokens), stop_reason="done",
        diagnostics={} if ties is None else {"num_tied": ties},
    )  # fmt: skip
    return Row(recipe=cell, question=str(question), right=right, oracle=True, candidates=1, values=values, result=result)


def comparison(**cells):
    rows = [row for found in cells.values() for row in found]
    return Comparison(recipes=tuple(dict.fromkeys(r.recipe for r in rows)), rows=tuple(rows), ledgers={}, is_complete=True)


def test_the_verdict_is_at_equal_cost_and_paired():
    num = 40
    found = comparison(
        base=[row("greedy", q, False, tokens=10) for q in range(num)],
        one=[row("best_of_n:verifier=v,num=1", q, False, tokens=12) for q in range(num)],
        four=[row("best_of_n:verifier=v,num=4", q, q % 2 == 0, tokens=48) for q in range(num)],
        vote=[row("self_consistency:num=4", q, q % 2 == 0 or q % 3 == 0, tokens=46) for q in range(num)],
        beam=[row("beam", q, q % 4 == 0, tokens=50) for q in range(num)],
        dear=[row("dear", q, True, tokens=500) for q in range(num)],
    )
    grid = Grid(strategies=(), verifiers=("v",), budgets=(1, 4))
    verdicts = {v.cell: v for v in against_best_of_n(found, {s.recipe: s for s in summarize(found)}, grid)}
    assert set(verdicts) == {"self_consistency:num=4", "beam", "dear"}
    assert verdicts["self_consistency:num=4"].yardstick == "best_of_n:verifier=v,num=4"
    assert verdicts["self_consistency:num=4"].word == "better" and verdicts["self_consistency:num=4"].gain == pytest.approx(7 / 40)
    assert verdicts["beam"].word == "worse" and verdicts["dear"].word == "no best-of-N at its cost"


def test_false_positives_and_ties_are_counted():
    values = ((1.0, True), (1.0, False), (0.0, False), (0.0, False))
    rows = [row("c", 0, True, tokens=1, values=values, ties=3, said=1.0), row("c", 1, False, tokens=1, values=values, ties=1, said=1.0)]
    found = cell_row(rows, summarize(comparison(c=rows))[0], None)
    assert (found["false_positive_rate"], found["accepted"], found["accepted_wrong"], found["ties"]) == (pytest.approx(1 / 3, abs=1e-4), 2, 1, 0.5)
    assert found["oracle_gap"] == 0.5 and found["auroc"] == pytest.approx(5 / 6, abs=1e-4)
    silent = [row("c", 0, True, tokens=1)]
    assert cell_row(silent, summarize(comparison(c=silent))[0], None)["ties"] is None


def test_page_and_picture_come_from_rows_alone(tmp_path):
    found, scored = played(tmp_path / "run")
    rows = [json.loads(json.dumps(CONTEXT | r)) for r in figure_rows(found, scored, GRID)]
    assert {r["kind"] for r in rows} == {"cell", "coverage", "length", "decomposition", "drawing"}
    assert [p.num for p in pools_of(found.of(GRID.pool_cell), scored)] == [4] * 6
    text = page_text(rows)
    assert "## toy, m" in text and "`self_consistency:num=4`" in text and "Better than greedy" in text
    assert page_text([*rows, *({**r, "run": "2", "seed": 9} for r in rows)]).count("seed 9") == 1, "the newest run alone is shown"
    assert len(newest(rows)) == 1
    for name in ("one", "two"):
        draw_study(rows, tmp_path / f"{name}.svg", title="t")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    assert picture_name("rg:a b", "m/1") == "study-rg-a-b-m-1.svg"


def test_lines_of_the_picture_differ_in_their_budget_alone():
    cells = [{"cell": c, "tokens": t} for c, t in (("a:num=4,x=1", 40), ("a:num=1,x=1", 10), ("a:x=2,num=1", 5), ("greedy", 1))]
    assert {k: [c["tokens"] for c in v] for k, v in families(cells).items()} == {"a (x=1)": [10, 40], "a (x=2)": [5], "greedy": [1]}
    warm = [
        {"cell": f"{name}:num={n},temperature={heat}", "tokens": n} for name, n, heat in (("a", 1, 0.5), ("a", 2, 0.5), ("b", 1, 0.5), ("a", 2, 0.8))
    ]
    assert {k: [c["tokens"] for c in v] for k, v in families(warm).items()} == {"a": [1, 2], "b": [1], "a (temperature=0.8)": [2]}


def test_ways_of_drawing_stand_side_by_side(tmp_path):
    grid = replace(GRID, strategies=("sample:num=4,temperature=0.3", "self_consistency:num=4,temperature=0.3", "self_consistency:num=4"))
    found, scored = played(tmp_path, grid=grid)
    rows = [CONTEXT | r for r in figure_rows(found, scored, grid)]
    drawings = [r for r in rows if r["kind"] == "drawing"]
    assert [r["cell"] for r in drawings] == ["sample:temperature=0.8,num=4", "sample:num=4,temperature=0.3"]
    pools = pools_of(found.of("sample:num=4,temperature=0.3"), scored)
    assert drawings[1]["mean"][0] == pytest.approx(sum(sum(p.right) for p in pools) / 24, abs=1e-4)
    table = [line for line in page_text(rows).splitlines() if line.startswith("| num=4, temperature")]
    assert len(table) == 2 and "`self_consistency` %" in page_text(rows)
