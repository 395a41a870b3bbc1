"""Stop wrong: the longest beginning of greedy decoding's answer whose every step is well judged, and nothing else."""

from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import Outcome, Verdict, candidate
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.greedy import Greedy
from ponder.infer.stop_wrong import StopWrong
from ponder.testing import laws_strategy as laws
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.testing.verifiers import Counting


@dataclass(frozen=True)
class Falling:
    """Trusts an answer less with every `a` in it; says nothing of empty ones."""

    name: str = "falling"

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        return tuple(Verdict(1 - c.text.count("a") / 4 if c.text else None, "probability") for c in candidates)


STRATEGIES = {"each token": StopWrong(verifier=Falling(), max_step=1), "whole": StopWrong(verifier=Counting("a"), stop_below=-1.0)}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


def answered(strategy, process):
    return run(strategy, process).result


def run(strategy, process):
    return answer_all(strategy.run(laws.LONG, TorchRng(0)), process)


def require_longest(strategy, key):
    """Against all of greedy decoding's answer and every beginning of it."""
    whole, found = (answered(s, ToyProcess(toy_lm("ab", seed=key))).candidates[0] for s in (Greedy(), strategy))
    steps = [whole.tokens[: n + 1] for n in range(len(whole.tokens))]
    good = 0
    for step in steps:
        text = "".join("ab"[t] if t < 2 else "" for t in step)
        value = 1 - text.count("a") / 4 if text else 1.0
        if value < strategy.stop_below:
            break
        good += 1
    assert found.tokens == whole.tokens[:good], f"{found.tokens} of {whole.tokens}: {good} steps are good"


@pytest.mark.parametrize("stop_below", [0.0, 0.3, 0.6, 0.8, 1.0])
def test_it_is_the_longest_good_beginning(stop_below):
    for key in range(12):
        require_longest(StopWrong(verifier=Falling(), stop_below=stop_below, max_step=1), key)


@dataclass(frozen=True, kw_only=True)
class ShowsIt(StopWrong):
    """Stops, but shows the step that it stopped at."""

    def run(self, prompt, rng):
        inner, answers, grown = super().run(prompt, rng), None, None
        try:
            turn = next(inner)
            while True:
                answers = yield turn
                grown = answers[0].prefix if hasattr(answers[0], "prefix") else grown
                turn = inner.send(answers)
        except StopIteration as end:
            return Outcome((candidate(grown),), diagnostics=end.value.diagnostics)


def test_a_wrong_step_must_not_be_shown():
    with pytest.raises(AssertionError, match="steps are good"):
        for key in range(12):
            require_longest(ShowsIt(verifier=Falling(), stop_below=0.8, max_step=1), key)


def test_what_is_not_computed_is_not_paid():
    """Stopping at the first step costs one step's tokens."""
    for stop_below in (0.0, 2.0):
        done = run(replace(STRATEGIES["each token"], stop_below=stop_below), ToyProcess(toy_lm("ab", seed=3)))
        found, is_stopped = done.result, stop_below > 1
        assert found.diagnostics["is_stopped"] is is_stopped and bool(found.candidates[0].tokens) is not is_stopped
        assert done.cost.generated_tokens == (1 if is_stopped else len(found.candidates[0].tokens))


def test_steps_are_counted():
    whole, cut = (answered(StopWrong(verifier=Falling(), stop_below=0, max_step=1, num_steps=n), ToyProcess(toy_lm("ab", seed=3))) for n in (None, 1))
    assert cut.candidates[0].tokens == whole.candidates[0].tokens[:1] and cut.diagnostics["num_steps"] == 1 < whole.diagnostics["num_steps"]


def test_bad_settings_are_refused():
    with pytest.raises(BadField, match="at least 1"):
        StopWrong(verifier=Falling(), max_step=0)
    with pytest.raises(BadField, match="at least 1"):
        StopWrong(verifier=Falling(), num_steps=0)
