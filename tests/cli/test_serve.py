"""The verb `serve`: mistakes are refused before a model is opened."""

import pytest
from typer.testing import CliRunner

from ponder.cli import main, serve
from ponder.core.errors import PonderError, StoreError
from ponder.testing.toy import ToyProcess, toy_lm


def test_help_names_what_an_operator_looks_for():
    found = CliRunner().invoke(main.app, ["serve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert found.exit_code == 0 and all(option in found.output for option in ("--api-key", "--allow-code", "--max-queue", "--drain", "--cors-origin"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--strategy", "best_of_m"], "unknown strategy 'best_of_m'"),
        (["--strategy", "best_of_n:verifier=public_tests"], "unknown verifier 'public_tests'"),
        (["--budget", "soon"], "budget part 'soon'"),
        (["--max-jobs", "0"], "max_jobs=0"),
        (["--max-per-key", "0"], "max_per_client=0"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--name", "a@b"], "must not hold @"),
        (["--api-key", "short"], "too short"),
        (["--api-key-file", "no/such/file"], "no/such/file"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--port", "70000"], "70000"),
    ],
)
def test_a_mistake_is_refused_before_the_model_is_opened(args, says, monkeypatch):
    monkeypatch.setattr(serve, "open_named", lambda *a, **k: pytest.fail("opened"))
    found = CliRunner().invoke(main.app, ["serve", *args])
    assert isinstance(found.exception, PonderError) and says in str(found.exception)


def test_a_store_that_cannot_be_opened_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "store").write_text("no database " * 100)
    monkeypatch.setattr(serve, "open_named", lambda *a, **k: ToyProcess(toy_lm()))
    found = CliRunner().invoke(main.app, ["serve", "--port", "0", "--store", str(tmp_path / "store")])
    assert isinstance(found.exception, StoreError) and "not a database" in str(found.exception)


def test_keys_come_from_options_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nkey-of-alice\n\nkey-of-bob\n")
    assert serve.read_keys(["key-of-carol", "key-of-bob"], file) == ("key-of-carol", "key-of-bob", "key-of-alice")
    assert serve.served_name("/models/smol.gguf", None) == "smol.gguf"
