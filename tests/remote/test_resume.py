"""An endpoint that dies in the middle of a comparison: what was answered is kept, and the run that goes on pays for the rest alone."""

import json
from pathlib import Path

import pytest

from ponder import catalogue
from ponder.core.asks import Extend, Prefix, Prompt
from ponder.core.budget import Budget
from ponder.core.errors import EndpointError
from ponder.remote.endpoint import Endpoint
from ponder.remote.open import open_remote
from ponder.run.compare import Question, RunFolder, compare, settings_of
from ponder.run.recipe import Recipe
from ponder.testing.run import answer_turn
from remote.fake_server import FakeServer, Fault, listening

QUESTIONS = [
    Question(id=str(i), prompt=Prompt(messages=(("user", f"Question {i}"),), max_tokens=16), is_right=lambda text: len(text) % 2 == 0)
    for i in range(6)
]
RECIPES = [Recipe(label=name, strategy=catalogue.strategy(name), budget=Budget()) for name in ("self_consistency:num=4", "self_refine")]
FILES = ("results.jsonl", "trace.jsonl")


def run(url: str, path: Path, *, resume: bool, tries: int = 2) -> int:
    """Runs the comparison; returns the number of requests that were sent after opening."""
    process = open_remote(Endpoint(url=url, name="model", tries=tries, wait=0.01, concurrency=4), catalogue.DIALECTS)
    try:
        folder = RunFolder(path, settings_of(process, RECIPES, QUESTIONS, task="t", seed=0)).open(resume=resume)
        before = process.wire.counts["requests"]
        try:
            compare(process, RECIPES, QUESTIONS, folder=folder)
        finally:
            folder.close()
        return process.wire.counts["requests"] - before
    finally:
        process.close()


def test_killed_in_the_middle_and_resumed(tmp_path: Path) -> None:
    whole = FakeServer()
    with listening(whole) as url:
        num_asked = run(url, tmp_path / "whole", resume=False)
    dying = FakeServer(faults=[None] * 13 + [Fault(cut=True)] * 1000)
    with listening(dying) as url, pytest.raises(EndpointError, match="--resume"):
        run(url, tmp_path / "cut", resume=False)
    alive = FakeServer()
    with listening(alive) as url:
        num_left = run(url, tmp_path / "cut", resume=True)
    assert num_left == num_asked - 13, "an answered ask was asked again, or an unanswered one was not"
    for name in FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nobody_there(tmp_path: Path) -> None:
    with listening(FakeServer()) as url:
        pass
    with pytest.raises(EndpointError, match="is it running"):
        run(url, tmp_path, resume=False)


def test_faults_on_the_way_change_no_row(tmp_path: Path) -> None:
    faults = [Fault(429, {"retry-after": "0.02"}, "slow"), None, Fault(500), Fault(cut=True), None, Fault(body="{"), Fault(seconds=0.05), None] * 20
    for name, server in (("plain", FakeServer()), ("faulty", FakeServer(faults=faults, delay=lambda body: body["seed"] % 5 / 500))):
        with listening(server) as url:
            run(url, tmp_path / name, resume=False, tries=9)
    rows = [[json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()] for name in ("plain", "faulty")]
    assert rows[0] == rows[1] and len(rows[0]) == len(RECIPES) * len(QUESTIONS)


def test_a_silent_server_is_asked_again(tmp_path: Path) -> None:
    server = FakeServer(faults=[Fault(seconds=30)])
    with listening(server) as url:
        process = open_remote(Endpoint(url=url, timeout=0.2, wait=0.01, tries=3), catalogue.DIALECTS)
        (answer,) = answer_turn([Extend(prefix=Prefix(QUESTIONS[0].prompt), seed=0)], process)
        assert answer.finish == "stop" and process.wire.counts["timeout"] == 1 and len(server.requests) == 2  # type: ignore[union-attr]
        process.close()
