"""scripts/lock: each lock holds what its own environment holds, and a lock that cannot be made leaves both as they were."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-bench.lock")
# stands for python: `-m venv DIR` makes another one there, pip writes down what it is asked for and freezes that, all else is python's
PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; : >"$3/bin/packages" ;;
    *" install "*)
        while [ $# -gt 0 ]; do [ "$1" = -r ] && grep -v '^#' "$2" >>"$here/packages"; shift; done
        ! grep -q "^$BROKEN" "$here/packages" ;;
    *" freeze "*) echo torch==9+cpu; grep -v '^torch' "$here/packages" ;;
    *) exec "$REAL" "$@" ;;
esac
"""


def run(folder: Path, broken: str = "nothing") -> tuple[int, list[list[str]]]:
    """Exit code, and the lines of both locks."""
    (folder / "benchmarks/peers").mkdir(parents=True, exist_ok=True)
    for name in ("pyproject.toml", "benchmarks/peers/wanted.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    env = {**os.environ, "PYTHON": str(folder / "python"), "REAL": sys.executable, "BROKEN": broken}
    done = subprocess.run(["sh", str(ROOT / "scripts/lock")], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, [(folder / name).read_text().splitlines() if (folder / name).exists() else [] for name in LOCKS]


def test_each_lock_is_of_its_own_environment(tmp_path: Path):
    code, (house, peers) = run(tmp_path)
    assert code == 0
    assert peers[0].startswith("# What `make bench` measures us against") and house[0].startswith("# Written by scripts/lock from pyproject.toml")
    assert house[1] == peers[1] == "torch==9"
    wanted = [line for line in (ROOT / "benchmarks/peers/wanted.txt").read_text().splitlines() if line[0] not in "#t"]
    assert [line for line in wanted if line not in peers] == []
    assert any(line.startswith("pytest") for line in house) and not any(line.startswith("pytest") for line in peers)
    assert any("openvino" in line for line in peers) and not any("openvino" in line for line in house)


@pytest.mark.parametrize("broken", ["pytest", "openvino"])
def test_what_cannot_be_installed_changes_no_lock(tmp_path: Path, broken: str):
    for name in LOCKS:
        (tmp_path / name).write_text("before\n")
    code, locks = run(tmp_path, broken)
    assert code != 0
    assert locks == [["before"], ["before"]]
