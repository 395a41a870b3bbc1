"""`ponder compare --ray` and `ponder study --ray` with the default model: the bytes of one machine, and nothing left after Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RAY = ("--ray", "local", "--replicas", "2")
COMPARE = (
    "compare",
    "--task",
    "rg:short_sums",
    "--n",
    "12",
    "--strategies",
    "greedy;self_consistency:num=4",
    "--budget",
    "600 tokens",
    "--threads",
    "1",
)
STUDY = (
    "study",
    "--tasks",
    "rg:short_sums",
    "-n",
    "4",
    "--budgets",
    "1,2",
    "--strategies",
    "self_consistency",
    "--verifiers",
    "mean_log_p",
    "--threads",
    "1",
)


def ponder(*args, **settings):
    return subprocess.Popen([sys.executable, "-m", "ponder.cli", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process, seconds=240):
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def rays():
    """Processes of Ray's that are there."""
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"ray::" in read(path) or b"/raylet/raylet" in read(path)}


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def contents(path):
    return [(path / name).read_bytes() for name in ("run.json", "results.jsonl", "trace.jsonl")]


def test_ctrl_c_ends_every_actor_and_a_resumed_run_ends_with_the_bytes_of_one_machine(smollm2_path, tmp_path):
    before = rays()
    code, said = ended(ponder(*COMPARE, "--out", tmp_path / "one"))
    assert code == 0, said
    run = ponder(*COMPARE, "--out", tmp_path / "many", *RAY)
    rows, deadline = tmp_path / "many" / "results.jsonl", time.monotonic() + 120
    while not read(rows) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    code, said = ended(run)
    assert code == 130 and "--resume" in said, said
    deadline = time.monotonic() + 30
    while rays() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not rays() - before, "Ray's processes outlive the command"
    assert contents(tmp_path / "many")[1] != contents(tmp_path / "one")[1], "it was done before it was interrupted"
    code, said = ended(ponder(*COMPARE, "--out", tmp_path / "many", *RAY, "--resume"))
    assert code == 0 and "replica" in said, said
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_study_is_that_of_one_machine(smollm2_path, tmp_path):
    for name, more in (("one", ()), ("many", RAY)):
        code, said = ended(ponder(*STUDY, "--out", tmp_path / name, *more))
        assert code == 0, said
    one, many = (tmp_path / name / "rg-short_sums" for name in ("one", "many"))
    assert contents(one) == contents(many)
    assert sorted((one / "scores.jsonl").read_text().splitlines()) == sorted((many / "scores.jsonl").read_text().splitlines())
