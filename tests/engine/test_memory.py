"""Loading takes little more memory than the packed model: no matrix in float32, no pages of the file, no second copy. Running takes no more
and more: what steps leave free goes back to the system.

Peaks are of the resident memory over what the interpreter with torch takes, in a program of its own. A file of 1 GB may take 1.5 times its size;
a small one also FIXED bytes: code of the kernels, rotary tables, the largest steps of packing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ponder.engine.process import TIDY_NBYTES, TIDY_STEPS
from ponder.models import memory
from ponder.models.fetch import MODELS, model_path

FIXED = 40 << 20
PROGRAM = Path(__file__).parent / "load_memory.py"
QWEN = model_path(MODELS["qwen2.5-coder-0.5b"])

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def loaded(path: Path, weights: str, how: str = "as it is") -> dict[str, int]:
    """Bytes: peak while loading, what stays, the packed model, the file."""
    done = subprocess.run([sys.executable, str(PROGRAM), str(path), weights, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def check_bounds(found: dict[str, int]) -> None:
    assert found["peak"] <= found["packed"] + FIXED, "more than the packed model"
    assert found["peak"] <= 1.5 * found["file"] + FIXED, "more than the file and a half"


@pytest.mark.parametrize("weights", ["int4", "native"])
def test_loading_takes_what_the_packed_model_takes(smollm2_path: Path, weights: str):
    found = loaded(smollm2_path, weights)
    check_bounds(found)
    assert found["packed"] <= (1.3 if weights == "int4" else 1.0) * found["file"], "an embedding that is the head too is there twice"


@pytest.mark.parametrize("how", ["float32", "mapped"])
def test_a_wrong_loader_breaks_the_bounds(smollm2_path: Path, how: str):
    with pytest.raises(AssertionError, match="more than"):
        check_bounds(loaded(smollm2_path, "int4", how))


def test_only_copies_that_were_asked_for_take_more(smollm2_path: Path):
    """mixed: four bits and bfloat16, 2.6 bytes a weight."""
    found = loaded(smollm2_path, "mixed")
    assert found["packed"] > 2.5 * found["file"]
    assert found["peak"] <= found["packed"] + FIXED + (40 << 20), "more than the packed model and what is made of it"


@pytest.mark.slow
@pytest.mark.skipif(not QWEN.is_file(), reason="qwen2.5-coder-0.5b is not in the cache; 491 MB are not pulled for a test")
@pytest.mark.parametrize("weights", ["int4", "int8", "int8-dynamic", "native"])
def test_a_file_and_a_half_is_enough(weights: str):
    found = loaded(QWEN, weights)
    assert found["peak"] <= 1.5 * found["file"]
    assert found["peak"] <= found["packed"] + 2 * FIXED


def check_holes(when: str) -> None:
    """Of a heap that is all holes, less than what is left for later stays in memory after a few hundred steps."""
    program = Path(__file__).parent / "long_run.py"
    setting = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent.parent, *sys.path)))}
    done = subprocess.run([sys.executable, str(program), when], capture_output=True, text=True, check=True, env=setting)
    found = json.loads(done.stdout)
    assert found["steps"] > 2 * TIDY_STEPS and found["holes"] > 1.2 * TIDY_NBYTES
    assert found["left"] < found["kept"] + found["holes"] / 4, "holes stay in memory"


@pytest.mark.skipif(memory.TRIM is None, reason="this C library gives nothing back")
def test_holes_go_back_to_the_system():
    check_holes("as it is")


@pytest.mark.skipif(memory.TRIM is None, reason="this C library gives nothing back")
def test_a_process_that_never_tidies_is_caught():
    with pytest.raises(AssertionError, match="holes stay"):
        check_holes("never")
