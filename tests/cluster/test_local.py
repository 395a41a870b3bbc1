"""A cluster on this machine answers as one machine does, byte for byte: fresh, resumed, after losses, with sandboxed verifiers."""

import os
import signal
import time
from pathlib import Path

import pytest

from cluster import problems as toy
from ponder.core.errors import PonderError
from ponder.run.question import Question

ray = pytest.importorskip("ray", reason="Ray is not installed")

from ponder.cluster.address import joined  # noqa: E402
from ponder.cluster.compare import compare  # noqa: E402
from ponder.cluster.pool import Pool, Want  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def cluster():
    with joined("local", cpus=2):
        yield


def there(path, recipes, questions, *, opener=None, want=None, resume=False, on_row=lambda row: None, should_stop=lambda: False):
    """The comparison on the cluster; and the pool as it was left."""
    pool = Pool(opener or toy.Opener(), want or Want(num=2, cpus=1, max_jobs=3)).open(questions[0].prompt)
    folder = toy.folder_at(path, pool, recipes, questions, resume=resume)
    try:
        return compare(pool, recipes, questions, folder=folder, seed=7, on_row=on_row, should_stop=should_stop), pool
    finally:
        folder.close()
        pool.close()


def replicas(diary: Path) -> list[int]:
    return [int(path.name) for path in diary.iterdir()]


def test_rows_and_traces_are_those_of_one_machine_and_a_resumed_run_computes_nothing(cluster, tmp_path):
    (tmp_path / "diary").mkdir()
    recipes, questions = toy.recipes(toy.judged()), toy.questions()
    toy.here(tmp_path / "one", recipes, questions)
    seen = []
    done, _ = there(tmp_path / "many", recipes, questions, opener=toy.Opener(0.002, tmp_path / "diary"), on_row=seen.append)
    assert done.is_complete and toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    assert [(r.recipe, r.question) for r in seen] == [(r.label, q.id) for r in recipes for q in questions]
    assert len(replicas(tmp_path / "diary")) == 2, "one replica did all the work"
    assert done.ledgers["sample:num=8"].stored_answers >= 5 * len(questions), "samples of an earlier recipe were drawn again"
    again, _ = there(tmp_path / "many", recipes, questions, resume=True)
    assert all(ledger.steps == 0 for ledger in again.ledgers.values()) and toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    here = toy.here(tmp_path / "many", recipes, questions, resume=True)
    assert all(ledger.steps == 0 for ledger in here.ledgers.values()), "one machine computes again what the cluster had finished"
    third, _ = there(tmp_path / "one", recipes, questions, resume=True)
    assert all(ledger.steps == 0 for ledger in third.ledgers.values()), "the cluster computes again what one machine had finished"


def test_a_replica_killed_at_work_costs_its_unfinished_problems_only(cluster, tmp_path):
    (tmp_path / "diary").mkdir()
    recipes, questions = toy.recipes(), toy.questions()
    toy.here(tmp_path / "one", recipes, questions)
    killed = []

    def on_row(row):
        if len(killed) < 1 and row.recipe != "greedy":
            os.kill(replicas(tmp_path / "diary")[0], signal.SIGKILL)
            killed.append(row)

    done, pool = there(tmp_path / "many", recipes, questions, opener=toy.Opener(0.003, tmp_path / "diary"), on_row=on_row)
    assert killed and pool.num_lost == 1 and done.is_complete
    assert toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    answers = sum(len(path.read_text().splitlines()) for path in (tmp_path / "diary").iterdir())
    assert answers < (1 + 8) * len(questions) + 3 * 8 + 4, "more was computed than what was lost: 3 problems of at most 8 samples"


def test_stopping_keeps_what_is_finished_and_ends_every_actor(cluster, tmp_path):
    (tmp_path / "diary").mkdir()
    recipes, questions, seen = toy.recipes(), toy.questions(), []
    opener = toy.Opener(0.01, tmp_path / "diary")
    done, _ = there(tmp_path / "many", recipes, questions, opener=opener, on_row=seen.append, should_stop=lambda: len(seen) >= 3)
    assert not done.is_complete and len(done.rows) >= 3
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in replicas(tmp_path / "diary")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in replicas(tmp_path / "diary"))
    toy.here(tmp_path / "one", recipes, questions)
    assert there(tmp_path / "many", recipes, questions, resume=True)[0].is_complete
    assert toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")


@pytest.mark.parametrize(
    "opener, want, says",
    [
        (toy.Opener(fault="refuse"), Want(cpus=1), "toy.gguf: no such file on this machine"),
        (toy.Opener(fault="die"), Want(num=1, cpus=1), "3 replicas died while they opened the model"),
        (toy.Opener(is_odd=True), Want(num=2, cpus=1), "computes otherwise"),
        (toy.Opener(), Want(num=2, cpus=2), "2 replicas of 2 CPUs: the cluster's 1 machine with 2 CPUs hold 1"),
        (toy.Opener(), Want(cpus=1, gpus=1), "1 replicas of 1 CPUs and 1 GPUs"),
    ],
)
def test_what_cannot_work_is_said_before_work_begins(cluster, tmp_path, opener, want, says):
    with pytest.raises(PonderError, match=says):
        there(tmp_path / "many", toy.recipes(), toy.questions(), opener=opener, want=want)


def test_a_budget_that_cannot_pay_is_refused_as_on_one_machine(cluster, tmp_path):
    from dataclasses import replace

    from ponder.core.budget import Budget

    recipes = [replace(toy.recipes()[0], budget=Budget(tokens=1))]
    with pytest.raises(PonderError, match="cannot pay one step"):
        there(tmp_path / "many", recipes, toy.questions())


def test_a_question_that_ends_every_replica_is_named(cluster, tmp_path):
    questions = [*toy.questions(3), Question(id="fatal", prompt=toy.questions()[0].prompt, is_right=toy.Kills())]
    with pytest.raises(PonderError, match="question 'fatal' under greedy was alone on 3 replicas"):
        there(tmp_path / "many", toy.recipes()[:1], questions)
