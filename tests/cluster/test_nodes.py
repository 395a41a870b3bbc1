"""Three machines (network namespaces), one of which dies in the middle, and a driver that is killed: the rows of one machine."""

import sys
from pathlib import Path

import pytest

from cluster import problems as toy
from cluster.machines import Machines, can_make_machines, wait_for

pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_make_machines(), reason="needs root and iproute2")]

DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from cluster import problems as toy
from ponder.cluster.address import joined
from ponder.cluster.compare import compare
from ponder.cluster.pool import Pool, Want

address, out, diary = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
recipes, questions = toy.recipes(toy.judged()), toy.questions(40)
with joined(address):
    pool = Pool(toy.Opener(0.01, diary), Want(cpus=1, max_jobs=4)).open(questions[0].prompt)
    folder = toy.folder_at(out, pool, recipes, questions, resume=True)
    try:
        compare(pool, recipes, questions, folder=folder, seed=7)
    finally:
        folder.close()
        pool.close()
    print("complete, lost", pool.num_lost)
"""


def test_a_node_and_the_driver_are_lost_on_the_way(tmp_path):
    toy.here(tmp_path / "one", toy.recipes(toy.judged()), toy.questions(40))
    diary, out = tmp_path / "diary", tmp_path / "many"
    diary.mkdir()
    script = DRIVER.format(paths=[str(Path(toy.__file__).parent.parent)])

    def rows():
        return (out / "results.jsonl").read_text().count("\n") if (out / "results.jsonl").exists() else 0

    with Machines(3) as machines:
        for i in range(3):
            machines.join(i, cpus=int(i > 0))
        drive = lambda: machines.start(0, sys.executable, "-c", script, machines.address, out, diary)
        driver = drive()
        wait_for(lambda: rows() >= 15 or driver.poll() is not None, 120, "rows")
        assert driver.poll() is None, machines.said(driver)
        wait_for(lambda: len(list(diary.iterdir())) == 2, 60, "the second replica")
        assert machines.kill(2) > 3, "there was no node to kill"
        wait_for(lambda: rows() >= 60 or driver.poll() is not None, 120, "more rows")
        assert driver.poll() is None, machines.said(driver)
        driver.kill()
        driver.wait()
        before, computed = rows(), answers(diary)
        machines.join(2, cpus=1)
        driver = drive()
        assert driver.wait(timeout=180) == 0, machines.said(driver)
        assert "complete, lost" in machines.said(driver)
        assert before < 160 and toy.contents(out) == toy.contents(tmp_path / "one")
        whole = (1 + 8 + 2) * 40
        assert answers(diary) <= whole + 2 * 4 * 8, "more was computed again than what two replicas had under way"
        assert computed > whole / 4 and len(list(diary.iterdir())) >= 3, "the kills came when nothing was done, or no new replica took part"


def answers(diary):
    return sum(len(path.read_text().splitlines()) for path in diary.iterdir())
