"""Every example runs, prints something, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, request):
    if "open_process" in path.read_text():
        request.getfixturevalue("smollm2_path")  # fetches the default model once
    done = subprocess.run([sys.executable, "-W", "error", path], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 40


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
