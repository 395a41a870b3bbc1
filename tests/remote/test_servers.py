"""Real servers: llama.cpp's own, where its package is installed (.venv/peers, or PONDER_PEERS names a Python that has it), and ponder's."""

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette")
from ponder import catalogue
from ponder.core.asks import GREEDY, Expand, Extend, Extension, Prefix, Prompt, Score
from ponder.core.budget import Budget
from ponder.core.errors import NotOffered
from ponder.remote.endpoint import Endpoint, read_endpoint
from ponder.remote.open import open_remote
from ponder.remote.process import RemoteProcess
from ponder.run.driver import Driver, Job, ask
from ponder.run.recipe import Recipe
from ponder.testing.run import answer_turn
from remote.fake_server import FakeServer
from serve.toy_server import Lettered, serving

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("PONDER_PEERS", ROOT / ".venv/peers/bin/python"))
PROMPT = Prompt(messages=(("user", "Count: one, two,"),), max_tokens=10)


@pytest.fixture(scope="module")
def llama(smollm2_path: Path) -> Iterator[RemoteProcess]:
    """llama.cpp's server on the default model, opened as a process."""
    if not PEERS.exists():
        pytest.skip("llama.cpp's server is not installed here")
    script = ROOT / "benchmarks" / "peers" / "llama_server.py"
    command = [str(PEERS), str(script), str(smollm2_path), "--slots", "4", "--context", "4096", "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        process = open_remote(read_endpoint(server.stdout.readline().strip() + "/v1"), catalogue.DIALECTS)
        yield process
        process.close()
        server.stdin.close()


def extended(process: RemoteProcess, *asks: Extend) -> list[Extension]:
    return [a for a in answer_turn(asks, process) if isinstance(a, Extension)]


def test_llama_cpp_goes_on_by_tokens(llama: RemoteProcess) -> None:
    """Greedy steps are the greedy answer: same tokens, text and log-probability; the prefix comes out of the server's cache."""
    (whole,) = extended(llama, Extend(prefix=Prefix(PROMPT), seed=0, sampling=GREEDY))
    prefix, num_steps, reused = Prefix(PROMPT), 0, 0
    while not prefix.is_final:
        (step,) = extended(llama, Extend(prefix=prefix, seed=0, sampling=GREEDY, until=("\n", " ")))
        assert step.finish in ("until", "stop", "length") and step.cost.generated_tokens == len(step.prefix.tokens) - len(prefix.tokens)
        prefix, num_steps, reused = step.prefix, num_steps + 1, reused + step.cost.reused_tokens
    assert num_steps > 1 and (prefix.tokens, prefix.text, prefix.finish) == (whole.prefix.tokens, whole.prefix.text, whole.prefix.finish)
    assert prefix.log_p == pytest.approx(whole.prefix.log_p, abs=0.05) and prefix.log_q == 0.0
    assert reused > llama.prompt_len(PROMPT) * (num_steps - 1) / 2


def test_llama_cpp_expands_and_scores_what_it_draws(llama: RemoteProcess) -> None:
    children = answer_turn([Expand(prefix=Prefix(PROMPT), num=3)], llama)[0].children  # type: ignore[union-attr]
    (first,) = extended(llama, Extend(prefix=Prefix(PROMPT), seed=0, sampling=GREEDY, max_tokens=1, logprobs=3))
    assert children[0].tokens == first.prefix.tokens and [c.log_p for c in children] == sorted((c.log_p for c in children), reverse=True)
    assert [token for token, _ in first.logprobs[0].top] == [c.tokens[0] for c in children]
    (scores,) = answer_turn([Score(prefix=Prefix(PROMPT), options=(first.prefix.text, "zebra", first.prefix.text))], llama)
    own, other, again = scores.log_p  # type: ignore[union-attr]
    assert own == again > other and own == pytest.approx(first.prefix.log_p, abs=0.05)


@pytest.mark.parametrize("name", ["best_of_n:num=3", "self_consistency:num=3", "particle_filter:num=2"])
def test_strategies_over_llama_cpp(llama: RemoteProcess, name: str) -> None:
    result = ask(llama, PROMPT, catalogue.strategy(name), Budget(tokens=400), seed=1)
    assert result.stop_reason == "done" and result.answer and result.cost.generated_tokens >= sum(len(c.tokens) for c in result.candidates[:1]) > 0
    assert all(c.log_p < 0 and math.isfinite(c.log_p) for c in result.candidates)


def test_llama_cpp_as_plain_openai(llama: RemoteProcess) -> None:
    """Its chat route, as any server's: whole answers with log-probabilities, exact counts, no steps."""
    plain = open_remote(Endpoint(url=llama.endpoint.url, kind="openai"), catalogue.DIALECTS)
    try:
        (answer,) = extended(plain, Extend(prefix=Prefix(PROMPT), seed=3, sampling=GREEDY))
        (mine,) = extended(llama, Extend(prefix=Prefix(PROMPT), seed=3, sampling=GREEDY))
        assert answer.prefix.text == mine.prefix.text and answer.cost.generated_tokens == mine.cost.generated_tokens
        assert answer.cost.prompt_tokens + answer.cost.reused_tokens == llama.prompt_len(PROMPT)
        with pytest.raises(NotOffered, match="separator"):
            plain.add(Extend(prefix=Prefix(PROMPT), seed=0, until=("\n",)))
    finally:
        plain.close()


def test_ponder_over_ponder() -> None:
    """A vote over ponder's own server is the vote over its process: the same texts from the same seeds, exact counts, no steps."""
    question = Prompt(messages=(("user", "ab"),), max_tokens=12)
    with serving(Lettered()) as (url, _):
        process = open_remote(Endpoint(url=f"{url}/v1", model="toy@sample"), catalogue.DIALECTS)
        try:
            job = Job(id="q", prompt=question, recipe=Recipe(label="vote", strategy=catalogue.strategy("best_of_n:num=6"), budget=Budget()), seed=0)
            ((_, first),), ((_, second),) = (list(Driver(process).run([job])) for _ in range(2))
            assert first.candidates == second.candidates and len({c.text for c in first.candidates}) > 1
            assert first.stop_reason == "done" and all(c.log_p < 0 for c in first.candidates)
            assert first.cost.generated_tokens == sum(len(c.tokens) for c in first.candidates)
            with pytest.raises(NotOffered, match="ParticleFilter needs"):
                ask(process, question, catalogue.strategy("particle_filter"))
        finally:
            process.close()


def test_ponder_serves_what_is_served_elsewhere() -> None:
    """`ponder serve` in front of another server: its strategies over that one's answers."""
    elsewhere = open_remote(Endpoint(url="http://fake/v1"), catalogue.DIALECTS, transport=FakeServer().transport)
    with serving(elsewhere) as (url, _):
        body = {"model": "toy", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 12, "ponder": {"strategy": "self_consistency:num=3"}}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        assert reply["choices"][0]["message"]["content"] and reply["usage"]["completion_tokens"] == 36
        refused = httpx.post(f"{url}/v1/chat/completions", json=body | {"ponder": {"strategy": "beam"}})
        assert refused.status_code == 400 and "likeliest next tokens" in refused.text
    elsewhere.close()
