"""A cluster on this machine answers as one machine does, byte for byte: fresh, resumed, after losses, with sandboxed verifiers."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import problems as toy
from ponder.core.budget import Budget
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


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory):
    """Two replicas that take their time and write down what they compute; kept open, since each takes seconds to start."""
    pool = Pool(toy.Opener(0.003, tmp_path_factory.mktemp("diary")), Want(num=2, cpus=1, max_jobs=3)).open(toy.questions()[0].prompt)
    deadline = time.monotonic() + 60
    while sum(member.is_open for member in pool.members) < 2 and time.monotonic() < deadline:
        pool.wait()
    yield pool
    pool.close()


def there(pool, path, recipes, questions, *, resume=False, on_row=lambda row: None, should_stop=lambda: False):
    """The comparison on the cluster, and how many answers of the model it took."""
    before = len(diary(pool)) if pool.opener.diary else 0
    folder = toy.folder_at(path, pool, recipes, questions, resume=resume)
    try:
        found = compare(pool, recipes, questions, folder=folder, seed=7, on_row=on_row, should_stop=should_stop)
    finally:
        folder.close()
    return found, len(diary(pool)) - before if pool.opener.diary else 0


def diary(pool):
    return [line for path in pool.opener.diary.iterdir() for line in path.read_text().splitlines()]


def replicas(pool):
    """Process ids of those that are alive."""
    return [pid for pid in (int(path.name) for path in pool.opener.diary.iterdir()) if Path(f"/proc/{pid}").exists()]


def test_rows_and_traces_are_those_of_one_machine_and_nothing_is_computed_twice(pool, tmp_path):
    recipes, questions, seen = toy.recipes(toy.judged()), toy.questions(), []
    toy.here(tmp_path / "one", recipes, questions)
    done, num = there(pool, tmp_path / "many", recipes, questions, on_row=seen.append)
    assert done.is_complete and toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    assert [(r.recipe, r.question) for r in seen] == [(r.label, q.id) for r in recipes for q in questions]
    assert len(replicas(pool)) == 2 and len(done.ledgers) == 2, "one replica did all the work"
    assert num == (1 + 8 + 2) * len(questions), "greedy, 8 samples and 2 of best-of-n: what an earlier recipe drew is not drawn again"
    assert there(pool, tmp_path / "many", recipes, questions, resume=True)[1] == 0
    assert toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    here = toy.here(tmp_path / "many", recipes, questions, resume=True)
    assert all(ledger.steps == 0 for ledger in here.ledgers.values()), "one machine computes again what the cluster had finished"
    assert there(pool, tmp_path / "one", recipes, questions, resume=True)[1] == 0, "the cluster computes again what one machine had finished"


def test_a_replica_killed_at_work_costs_its_unfinished_problems_only(pool, tmp_path):
    recipes, questions, killed = toy.recipes(), toy.questions(), []
    toy.here(tmp_path / "one", recipes, questions)

    def on_row(row):
        if not killed and row.recipe != "greedy":
            killed.append(replicas(pool)[0])
            os.kill(killed[0], signal.SIGKILL)

    lost = pool.num_lost
    done, num = there(pool, tmp_path / "many", recipes, questions, on_row=on_row)
    assert killed and pool.num_lost == lost + 1 and done.is_complete
    assert toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")
    assert num <= (1 + 8) * len(questions) + 3 * 8, "more was computed again than 3 problems of at most 8 samples"


def test_stopping_keeps_what_is_finished(pool, tmp_path):
    recipes, questions, seen = toy.recipes(), toy.questions(), []
    toy.here(tmp_path / "one", recipes, questions)
    done, _ = there(pool, tmp_path / "many", recipes, questions, on_row=seen.append, should_stop=lambda: len(seen) >= 3)
    assert not done.is_complete and len(done.rows) >= 3
    assert there(pool, tmp_path / "many", recipes, questions, resume=True)[0].is_complete
    assert toy.contents(tmp_path / "many") == toy.contents(tmp_path / "one")


def test_a_budget_that_cannot_pay_is_refused_as_on_one_machine(pool, tmp_path):
    recipes = [replace(toy.recipes()[0], budget=Budget(tokens=1))]
    with pytest.raises(PonderError, match="cannot pay one step"):
        there(pool, tmp_path / "many", recipes, toy.questions())


def test_closing_ends_every_replica(pool):
    pids = replicas(pool)
    pool.close()
    deadline = time.monotonic() + 30
    while replicas(pool) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not replicas(pool)


BAD = [
    (toy.Opener(fault="refuse"), Want(num=1, cpus=1), "toy.gguf: no such file on this machine"),
    (toy.Opener(), Want(num=2, cpus=2), "2 replicas of 2 CPUs: the cluster's 1 machine with 2 CPUs hold 1"),
    (toy.Opener(), Want(cpus=1, gpus=1), "1 replicas of 1 CPUs and 1 GPUs"),
]


@pytest.mark.parametrize("opener, want, says", BAD)
def test_what_cannot_work_is_said_before_work_begins(cluster, opener, want, says):
    pool = Pool(opener, want)
    with pytest.raises(PonderError, match=says):
        pool.open(toy.questions()[0].prompt)
    pool.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "opener, says", [(toy.Opener(fault="die"), "3 replicas died while they opened the model"), (toy.Opener(is_odd=True), "computes otherwise")]
)
def test_replicas_that_die_or_compute_otherwise(cluster, tmp_path, opener, says):
    pool = Pool(opener, Want(num=2, cpus=1))
    with pytest.raises(PonderError, match=says):
        pool.open(toy.questions()[0].prompt)
        there(pool, tmp_path / "many", toy.recipes(), toy.questions(400))
    pool.close()


@pytest.mark.slow
def test_a_question_that_ends_every_replica_is_named(cluster, tmp_path):
    questions = [*toy.questions(3), Question(id="fatal", prompt=toy.questions()[0].prompt, is_right=toy.Kills())]
    pool = Pool(toy.Opener(), Want(num=2, cpus=1)).open(questions[0].prompt)
    with pytest.raises(PonderError, match="question 'fatal' under greedy was alone on 3 replicas"):
        there(pool, tmp_path / "many", toy.recipes()[:1], questions)
    pool.close()
