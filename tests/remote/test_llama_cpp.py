"""The dialect of llama.cpp's server, over a model whose probabilities are known: the laws of the role, as far as a server can keep them."""

import pytest

from ponder import catalogue
from ponder.core.asks import GREEDY, Expand, Extend, Prefix, Prompt, Sampling, Score
from ponder.remote.endpoint import Endpoint
from ponder.remote.open import open_remote
from ponder.remote.process import RemoteProcess
from ponder.run.driver import ask
from ponder.testing import laws_process as laws
from ponder.testing.run import answer_turn
from ponder.testing.toy import toy_lm
from remote.fake_llama import FakeLlama

LM = toy_lm("abcd", seed=11)
PROMPT = Prompt(messages=(("user", "ab"),), max_tokens=12)
NEW_NUMBERS = "the server's numbers begin anew with every request, so that only greedy answers are the same in pieces"
EXCEPTIONS = {laws.law_in_pieces: NEW_NUMBERS, laws.law_until: NEW_NUMBERS}  # strict: those must fail


@pytest.fixture
def opened():
    made: list[RemoteProcess] = []

    def make(server: FakeLlama | None = None) -> RemoteProcess:
        server = server or FakeLlama(LM)
        made.append(open_remote(Endpoint(url="http://fake/v1", wait=0.0), catalogue.DIALECTS, transport=server.transport))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law(opened, law):
    if law in EXCEPTIONS:
        with pytest.raises(AssertionError):
            law(opened, PROMPT, 1e-9)
    else:
        law(opened, PROMPT, 1e-9)


def test_greedy_steps_are_the_greedy_answer_and_its_probability_is_the_models(opened):
    process = opened()
    (whole,) = answer_turn([Extend(prefix=Prefix(PROMPT), seed=0, sampling=GREEDY)], process)
    prefix = Prefix(PROMPT)
    while not prefix.is_final:
        (step,) = answer_turn([Extend(prefix=prefix, seed=0, sampling=GREEDY, until=("a", "c"), max_tokens=5)], process)
        prefix = step.prefix
    assert (prefix.tokens, prefix.text, prefix.finish) == (whole.prefix.tokens, whole.prefix.text, whole.prefix.finish)
    exact, at = 0.0, LM.alphabet.index("b")
    for token in prefix.tokens:
        exact, at = exact + LM.row(at)[token], token
    assert prefix.log_p == pytest.approx(exact, abs=1e-12), "the separators' own probabilities count too"


@pytest.mark.parametrize("seed", range(6))
def test_log_p_of_sampled_steps_is_the_models(opened, seed):
    (step,) = answer_turn([Extend(prefix=Prefix(PROMPT), seed=seed, until=("a",))], opened())
    exact, at = 0.0, LM.alphabet.index("b")
    for token in step.prefix.tokens:
        exact, at = exact + LM.row(at)[token], token
    assert step.prefix.log_p == pytest.approx(exact, abs=1e-12) and step.prefix.log_q == step.prefix.log_p


def test_scores_and_children_are_exact(opened):
    process = opened()
    children, scores = answer_turn([Expand(prefix=Prefix(PROMPT), num=5), Score(prefix=Prefix(PROMPT), options=("a", "cd", "a"))], process)
    row = LM.row(1)
    assert [(c.tokens[0], c.log_p) for c in children.children] == sorted(enumerate(row), key=lambda pair: -pair[1])
    assert [c.finish for c in children.children] == ["stop" if c.tokens[0] == LM.end else None for c in children.children]
    assert scores.log_p == pytest.approx((row[0], row[2] + LM.row(2)[3], row[0]))


def test_requests_ask_for_ponders_own_order_of_shaping_and_for_nothing_else(opened):
    server = FakeLlama(LM)
    answer_turn([Extend(prefix=Prefix(PROMPT), seed=0, sampling=Sampling(temperature=0.7, top_k=3, min_p=0.1))], opened(server))
    body = dict(server.bodies)["completion"]
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (0.7, 3, 1.0, 0.1)
    assert body["samplers"] == ["temperature", "top_k", "top_p", "min_p"] and body["repeat_penalty"] == 1.0


@pytest.mark.parametrize("name", ["best_of_n:num=3", "self_consistency:num=3", "particle_filter:num=3", "beam:width=2"])
def test_strategies(opened, name):
    first, second = (ask(opened(), PROMPT, catalogue.strategy(name), seed=1) for _ in range(2))
    assert first.stop_reason == "done" and first.candidates == second.candidates != ()
