"""Compiles the room's C++ on the user's own machine, once, and loads it. Without a compiler or such a CPU there is none.

All *.cpp of the room, with its headers, become one shared library in the cache folder, under a name that is a hash of what made it: sources,
flags, compiler and CPU. It uses the OpenMP of PyTorch, which is loaded first, so that both share one pool of threads.
The package installs without a compiler; whoever asks `library()` must go on when it says None.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch  # loads the OpenMP runtime that the library then finds

from ponder.core.cache import cache_dir

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-std=c++17")
CPU_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16")
TILE_FLAGS = frozenset({"amx_tile", "amx_bf16"})
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # of x86-64 Linux
TIMEOUT = 300  # seconds of a compile that will not end


class CannotBuild(Exception):
    """Why there is no library, in one line."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built when first asked for (some seconds, then kept); None where `reason` says why."""
    return _open()[0]


def reason() -> str:
    """Why `library` is None, in one line; empty where it is there."""
    return _open()[1]


def are_tiles_allowed(flags: frozenset[str]) -> bool:
    """Whether the CPU has matrix registers (AMX) and Linux gives them to this program, which has to ask once for all of its threads."""
    if not flags >= TILE_FLAGS or sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


@functools.cache
def _open() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("PONDER_NATIVE") == "0":
        return None, "PONDER_NATIVE=0 asks for none"
    try:
        flags = cpu_flags()
        return ctypes.CDLL(str(build(sorted(Path(__file__).parent.glob("*.cpp")), flags, has_tiles=are_tiles_allowed(flags)))), ""
    except CannotBuild as error:
        return None, str(error)
    except OSError as error:
        return None, f"the compiled kernels do not load: {error}"


def cpu_flags() -> frozenset[str]:
    """What this CPU can do, as Linux names it; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() and platform.machine() == "x86_64" else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def build(sources: list[Path], flags: frozenset[str], *, has_tiles: bool = False) -> Path:
    """The shared library of `sources`, compiled unless the cache has it. Safe for many processes at once. Raises CannotBuild.

    has_tiles: it may use matrix registers.
    """
    if missing := [flag for flag in CPU_FLAGS if flag not in flags]:
        raise CannotBuild(f"the kernels need a CPU with {', '.join(CPU_FLAGS)}; this one lacks {', '.join(missing)}")
    compiler = find_compiler()
    version = run([compiler, "--version"]).splitlines()[:1]
    read = sorted({*sources, *(header for path in sources for header in path.parent.glob("*.hpp"))})
    options = [*FLAGS, *(["-DPONDER_TILES"] if has_tiles else [])]
    made_of = [*options, *version, *sorted(flags), torch.__version__, *(f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in read)]
    folder = cache_dir() / "native"
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]
    target = folder / f"{key}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "library.so"
            run([compiler, *options, "-shared", "-o", str(out), *(str(path) for path in sources)])
            out.replace(target)
    except OSError as error:
        raise CannotBuild(f"the kernels cannot be written to {folder}: {error}") from error
    return target


def find_compiler() -> str:
    """A C++ compiler: $CXX, or the first of COMPILERS on the path. Raises CannotBuild."""
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise CannotBuild(f"no C++ compiler: none of {', '.join(names)} is on the path")
    return found


def run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        why = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
        raise CannotBuild(f"{command[0]} does not compile the kernels: {why.strip()}")
    return done.stdout
