"""Building the kernels: once, in any number of processes, and a reason in words where there are none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ponder.native.build import COMPILERS, CPU_FLAGS, CannotBuild, build, cpu_flags, library, reason

NEEDED = frozenset(CPU_FLAGS)
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def in_child(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


needs_compiler = pytest.mark.skipif(library() is None, reason="no compiler here, or a CPU without the instructions")


is_able = cpu_flags() >= NEEDED and any(map(shutil.which, COMPILERS)) and os.environ.get("PONDER_NATIVE") != "0"


@pytest.mark.skipif(not is_able, reason="no compiler here, or a CPU without the instructions")
def test_the_kernels_build_wherever_they_can():
    """Else every other test of them would be skipped."""
    assert reason() == ""
    assert library() is not None


@needs_compiler
def test_many_processes_build_one_library(source: Path, tmp_path: Path):
    code = f"""
import ctypes, pathlib
from ponder.native.build import build, cpu_flags
path = build([pathlib.Path({str(source)!r})], cpu_flags())
print(path, ctypes.CDLL(str(path)).answer())
"""
    children = [in_child(code) for _ in range(3)]
    said = {child.communicate()[0] for child in children}
    assert len(said) == 1
    assert said.pop().split()[1] == "42"
    assert len(list((tmp_path / "cache/native").iterdir())) == 1, "something is left beside the library"


@needs_compiler
def test_what_makes_a_library_names_it(source: Path):
    first = build([source], cpu_flags())
    before = first.stat().st_mtime_ns
    assert build([source], cpu_flags()) == first
    assert first.stat().st_mtime_ns == before, "built again"
    (source.parent / "answer.hpp").write_text("// a header")
    second = build([source], cpu_flags())
    source.write_text(SOURCE.replace("42", "43"))
    assert len({first, second, build([source], cpu_flags())}) == 3


@needs_compiler
def test_a_failing_compile_says_why(source: Path, tmp_path: Path):
    source.write_text("int answer( {}")
    with pytest.raises(CannotBuild, match=r"answer\.cpp:1.*error"):
        build([source], cpu_flags())
    assert list((tmp_path / "cache/native").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_says_so(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PONDER_CACHE", str(source / "below-a-file"))
    with pytest.raises(CannotBuild, match="cannot be written"):
        build([source], cpu_flags())


def test_a_cpu_without_the_instructions_says_which(source: Path):
    with pytest.raises(CannotBuild, match="lacks avx512_bf16"):
        build([source], NEEDED - {"avx512_bf16"})


def test_no_compiler_says_so(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotBuild, match="none of no-such-compiler"):
        build([source], NEEDED)


def test_the_library_is_absent_when_asked_to_be():
    child = in_child("from ponder.native.build import library, reason; print(library(), reason())", PONDER_NATIVE="0")
    assert child.communicate()[0].strip() == "None PONDER_NATIVE=0 asks for none"
