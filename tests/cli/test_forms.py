"""--form: what a person writes becomes a form of the answer, mistakes are one line, and answers are in it."""

import json
import subprocess
import sys

import pytest

from ponder.cli.forms import MAX_BYTES, read_form
from ponder.core.asks import Choice, Grammar, Json, JsonSchema, Regex
from ponder.core.errors import PonderError


def test_every_kind(tmp_path):
    (tmp_path / "s.json").write_text('{"type": "object"}')
    (tmp_path / "g.lark").write_text('start: "a"+')
    assert read_form("json") == Json()
    assert read_form("regex:[0-9]+(:[0-9]+)?") == Regex("[0-9]+(:[0-9]+)?")
    assert read_form("choice:yes, no") == Choice(("yes", "no"))
    assert read_form(f"schema:{tmp_path / 's.json'}") == JsonSchema('{"type": "object"}')
    assert read_form(f"lark:{tmp_path / 'g.lark'}") == Grammar('start: "a"+')


def test_mistakes(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    wrong = {
        "jsn": "did you mean json",
        "json:x": "write json",
        "regex:": "write regex:PATTERN",
        "choice:,": "not all empty",
        "schema": "write schema:FILE",
        f"schema:{tmp_path / 'none.json'}": "No such file",
        f"schema:{tmp_path}": "directory",
        f"lark:{tmp_path / 'big'}": "at most",
        f"lark:{tmp_path / 'raw'}": "UTF-8",
    }
    for text, says in wrong.items():
        with pytest.raises(PonderError, match=says):
            read_form(text)


def ponder(*args):
    return subprocess.run(
        [sys.executable, "-m", "ponder.cli", *map(str, args)], capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("strategy", ("constrained_smc:num=2", "best_of_n:num=2"))
def test_answers_are_in_the_form(strategy, smollm2_path, tmp_path):
    trace = tmp_path / "t.jsonl"
    done = ponder("ask", "Is the sky blue?", "--form", "choice:yes,no", "--strategy", strategy, "--max-tokens", "8", "--trace", trace)
    assert done.returncode == 0, done.stderr
    end = json.loads(trace.read_text().splitlines()[-1])
    assert {c["text"] for c in end["candidates"]} <= {"yes", "no"} and len(end["candidates"]) == 2


def test_a_form_that_cannot_be_read_is_refused(smollm2_path):
    done = ponder("ask", "hi", "--form", "regex:[0-9")
    assert done.returncode == 2 and "form" in done.stderr and "Traceback" not in done.stderr
