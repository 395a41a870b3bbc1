"""Verifiers that raise, hang, say NaN or contradict themselves: the run goes on, the job has an answer, the fault is counted."""

import math
import threading
from dataclasses import dataclass, field

import pytest

from ponder.core.asks import ABSTAIN, Candidate, Judge, Prefix, Prompt, Score, Verdict, chat
from ponder.core.budget import Budget
from ponder.core.errors import BadField, PonderError
from ponder.core.votes import by_verdict
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.ops import log_odds
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.infer.self_consistency import SelfConsistency
from ponder.run.driver import Driver, Job
from ponder.run.judging import Judging, first_opinions, is_sound
from ponder.run.recipe import Recipe
from ponder.testing.toy import ToyProcess, toy_lm

PROMPT = Prompt(messages=(("raw", "a"),), max_tokens=6)
RELEASE = threading.Event()
NUMBERS = {"NaN": math.nan, "infinity": math.inf}  # settings are JSON, which has neither


@dataclass(frozen=True)
class Saying:
    """Says `values`, one after the other; raises where one is an exception; hangs on "hang"."""

    values: tuple = ()
    where: str = "judge"
    name: str = "saying"
    calls: list = field(default_factory=list, compare=False)

    def asks(self, prompt, candidates):
        return self._say(()) if self.where == "asks" else ()

    def judge(self, prompt, candidates, answers):
        return self._say(tuple(Verdict(NUMBERS.get(v, v), "probability") for v, _ in zip(self.values * 9, candidates)))

    def _say(self, what):
        self.calls.append(1)
        if isinstance(self.values[0], Exception):
            raise self.values[0]
        if self.values[0] == "hang":
            RELEASE.wait(60)
        return what


def strategies(verifier):
    return {
        "best_of_n": BestOfN(num=3, verifier=verifier),
        "vote": SelfConsistency(num=3, verifier=verifier, weigh=by_verdict),
        "particles": ParticleFilter(num=3, resampler=systematic, verifier=verifier, potential=log_odds, until=("b",)),
    }


def run(strategy, verifier_seconds=600.0, num=2):
    driver = Driver(ToyProcess(toy_lm()), verifier_seconds=verifier_seconds)
    jobs = [Job(id=str(i), prompt=PROMPT, recipe=Recipe(label="x", strategy=strategy, budget=Budget()), seed=i) for i in range(num)]
    jobs.append(Job(id="beside", prompt=PROMPT, recipe=Recipe(label="y", strategy=Greedy(), budget=Budget()), seed=0))
    return [result for _, result in driver.run(jobs)], driver


BROKEN = {
    "raises": (Saying((ZeroDivisionError("1 / 0"),)), "raised"),
    "raises when it asks": (Saying((KeyError("x"),), where="asks"), "raised"),
    "says NaN": (Saying(("NaN",)), "no_value"),
    "says infinity": (Saying(("infinity",)), "no_value"),
    "says a word": (Saying(("good",)), "no_value"),
    "leaves its range": (Saying((1.5,)), "no_value"),
    "says nothing": (Saying(()), "raised"),
}


@pytest.mark.parametrize("strategy", strategies(Saying()))
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_verifier_has_no_opinion(name, strategy):
    verifier, kind = BROKEN[name]
    results, driver = run(strategies(verifier)[strategy])
    assert [r.stop_reason for r in results] == ["done"] * 3
    assert all(r.candidates and r.diagnostics["verifier_faults"][kind] > 0 for r in results[:2])
    assert "verifier_faults" not in results[2].diagnostics
    assert driver.judging.faults[kind] == sum(r.diagnostics["verifier_faults"][kind] for r in results[:2])
    assert all(v.value is None for r in results[:2] for c in r.candidates for v in c.verdicts)


def test_a_verifier_that_miscounts_has_no_opinion():
    class Short(Saying):
        def judge(self, prompt, candidates, answers):
            return (Verdict(0.5, "probability"),)

    results, _ = run(BestOfN(num=3, verifier=Short()))
    assert [r.diagnostics["verifier_faults"] for r in results[:2]] == [{"miscounted": 1}] * 2


def test_a_verifier_that_hangs_is_left_behind_and_not_asked_again():
    verifier = Saying(("hang",))
    try:
        results, driver = run(BestOfN(num=3, verifier=verifier), verifier_seconds=0.05, num=4)
        assert all(r.candidates and r.diagnostics["verifier_faults"] == {"hung": 1} for r in results[:4])
        assert len(verifier.calls) == 1 and driver.judging.faults == {"hung": 4}
    finally:
        RELEASE.set()


def test_a_caller_s_mistake_still_fails_its_job_with_its_line():
    results, _ = run(BestOfN(num=3, verifier=Saying((BadField("reference=x: must be a number"),))))
    assert [r.stop_reason for r in results] == ["failed", "failed", "done"]
    assert "must be a number" in results[0].diagnostics["error"]


def test_contradictions_are_settled_by_the_first():
    same, other = (Candidate(t, t, (1,), log_p=-1.0) for t in ("a", "b"))
    told = tuple(Verdict(v, "probability") for v in (0.2, 0.9, 0.7))
    assert first_opinions((same, other, same), told) == (told[0], told[1], told[0])
    ask = Judge(verifier=Saying((0.2, 0.9, 0.7)), prompt=PROMPT, candidates=(same, other, same))
    verdicts, faults = Judging(None).verdicts(ask, ())
    assert [v.value for v in verdicts] == [0.2, 0.9, 0.2] and faults == {"contradicted": 1}
    assert Judging(None).verdicts(Judge(verifier=Saying((0.2, 0.9)), prompt=PROMPT, candidates=(same, other, same)), ())[1] == {}


@dataclass(frozen=True)
class Wordy:
    """Asks about prompts longer than any context."""

    name: str = "wordy"

    def asks(self, prompt, candidates):
        return tuple(Score(prefix=Prefix(chat("a" * 10_000)), options=("a",)) for _ in candidates)

    def judge(self, prompt, candidates, answers):
        return tuple(Verdict(a.log_p[0], "log_p") if a.log_p else ABSTAIN for a in answers)


def test_a_verifier_s_prompt_that_does_not_fit_is_an_abstention():
    results, driver = run(BestOfN(num=3, verifier=Wordy()))
    assert [r.stop_reason for r in results] == ["done"] * 3
    assert results[0].diagnostics["verifier_faults"] == {"too_long": 3} and driver.judging.faults == {"too_long": 6}


def test_what_is_sound():
    assert is_sound(ABSTAIN) and is_sound(Verdict(-3, "log_p")) and is_sound(Verdict(1.0, "probability"))
    bad = (Verdict(math.nan), Verdict(-math.inf, "log_p"), Verdict(True), Verdict("1"), Verdict(-0.1, "probability"), None, 0.5)
    assert not any(map(is_sound, bad))
    with pytest.raises(PonderError, match="some time"):
        Judging(0.0)
