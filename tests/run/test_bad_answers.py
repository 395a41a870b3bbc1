"""Every strategy of the catalogue, under the driver, when nothing that it gets is any good: no answer can be read, answers are empty,
no branch is worth going on, verifiers say nonsense. Each run ends by itself, with a candidate, and says what it can."""

import itertools
import json
import math
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest

from ponder.catalogue import STRATEGIES
from ponder.core.asks import Extend, Extension, Prefix, Prompt, Score, Scores, TokenLogP, Verdict
from ponder.core.budget import Budget
from ponder.run.codec import answer_from_json, answer_json, dumps
from ponder.run.driver import ask
from ponder.testing.toy import ToyLM, ToyProcess, toy_lm

MANY = Budget(tokens=30_000)


@dataclass(frozen=True)
class Mute:
    """Reads no answer in anything."""

    def read(self, text):
        return None

    def same(self, a, b):
        return a == b


LM = toy_lm("a\n", seed=1)
ENDS = ToyLM("a\n", ((0.0, 0.0, 1.0),) * 3)  # says nothing, ever
UNREADABLE = Prompt(messages=(("raw", "q"),), max_tokens=8, answers=Mute())
WHOLE = Prompt(messages=(("raw", "q"),), max_tokens=8)


@dataclass(frozen=True)
class Saying:
    """A verifier that says these values in turn, whatever it is asked: NaN, an exception, or each time another opinion."""

    values: tuple = ("nan",)  # NaN by its name, as settings are JSON
    name: str = "saying"

    def __post_init__(self):
        object.__setattr__(self, "said", itertools.cycle(self.values))

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        told = [next(self.said) for _ in candidates]
        if any(isinstance(value, Exception) for value in told):
            raise next(value for value in told if isinstance(value, Exception))
        return tuple(Verdict(math.nan if value == "nan" else value, "probability") for value in told)


VERIFIERS = {
    "NaN": Saying(("nan",)),
    "raises": Saying((ZeroDivisionError("1 / 0"),)),
    "contradicts itself": Saying((0.1, 0.9, 0.5)),
    "gives all up": Saying((0.0,)),
    "abstains": Saying((None,)),
}


def judged_by(value, verifier):
    """`value` with every verifier in it replaced, `min_reward` so high that a verdict of 0 gives a branch up."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {f.name: judged_by(getattr(value, f.name), verifier) for f in fields(value) if f.init and f.name != "verifier"}
    names = {f.name for f in fields(value)}
    changes |= {"verifier": verifier} if getattr(value, "verifier", None) is not None else {}
    changes |= {"min_reward": 0.2} if "min_reward" in names else {}
    return replace(value, **changes)


def has_verifier(value):
    return is_dataclass(value) and any(
        (f.name == "verifier" and value.verifier is not None) or has_verifier(getattr(value, f.name)) for f in fields(value)
    )


def require_ended(result):
    assert result.stop_reason in ("done", "tokens"), result.diagnostics
    assert result.candidates and all(c.finish is not None for c in result.candidates)


@pytest.mark.parametrize("name", STRATEGIES)
def test_answers_that_nobody_can_read(name):
    result = ask(ToyProcess(LM), UNREADABLE, STRATEGIES[name], MANY)
    require_ended(result)
    assert result.answer is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_answers_that_are_empty(name):
    result = ask(ToyProcess(ENDS), WHOLE, STRATEGIES[name], MANY)
    require_ended(result)
    assert {c.text.strip() for c in result.candidates} == {""} and result.answer is None


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if has_verifier(strategy)])
def test_verifiers_that_are_no_use(name, verifier):
    """With every branch given up there is still a whole answer."""
    result = ask(ToyProcess(LM), WHOLE, judged_by(STRATEGIES[name], VERIFIERS[verifier]), MANY)
    require_ended(result)
    assert any(c.finish in ("stop", "length") for c in result.candidates)
    assert all(v.value is None or 0 <= v.value <= 1 for c in result.candidates for v in c.verdicts)


def test_what_is_impossible_can_be_traced_and_stored():
    """A log-probability of minus infinity is a fact, not a fault of the run."""
    answers = {
        Score(prefix=Prefix(WHOLE), options=("a", "b")): Scores((-math.inf, -0.5)),
        Extend(prefix=Prefix(WHOLE), seed=0, logprobs=2): Extension(
            Prefix(WHOLE, (0,), "a", -0.5, -0.5), "limit", logprobs=(TokenLogP(0, -0.5, ((0, -0.5), (1, -math.inf))),)
        ),
    }
    for ask_, answer in answers.items():
        assert answer_from_json(ask_, json.loads(dumps(answer_json(answer)))) == answer
