"""The online driver: jobs come and go at any turn, events tell what happened, and nothing about an answer changes by it."""

import time
from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import Extend, Outcome, Prefix, Prompt, Turn, candidate
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BudgetTooSmall, PromptTooLong
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.ops import MeanProbability
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.run.driver import Driver, Job
from ponder.run.events import Finished, Grown, Started, Told
from ponder.run.recipe import Recipe
from ponder.testing.toy import ToyProcess, toy_lm

ENDLESS = replace(toy_lm(), table=((0.5, 0.5, 0.0),) * 3)
FILTER = ParticleFilter(num=4, resampler=systematic, until=("b",))
STRATEGIES = (Greedy(), Sample(num=3), BestOfN(num=4, verifier=MeanProbability()), FILTER)


@dataclass(frozen=True)
class Steps:
    """Extends one prefix by three tokens at a time."""

    guarantee = Greedy.guarantee

    def run(self, prompt, rng):
        prefix, step = Prefix(prompt), 0
        while not prefix.is_final:
            (answer,) = yield Turn((Extend(prefix=prefix, seed=rng.seed(step), max_tokens=3),), (candidate(prefix),))
            prefix, step = answer.prefix, step + 1
        return Outcome((candidate(prefix),))


def job(name, strategy, *, budget=None, max_tokens=12, **settings):
    prompt = Prompt(messages=(("raw", "ab"),), max_tokens=max_tokens)
    return Job(id=name, prompt=prompt, recipe=Recipe(label=name, strategy=strategy, budget=budget or Budget()), seed=len(name), **settings)


def until_idle(driver):
    events = []
    while driver.active or driver.todo:
        events += driver.turn()
    return events


def timeless(result):
    return replace(result, cost=replace(result.cost, seconds=0, cpu_seconds=0), computed=Cost())


@pytest.mark.parametrize("tokens", [20, None])
def test_jobs_that_come_at_different_turns_are_answered_as_from_a_list(tokens):
    jobs = [job("x" * (i + 1), s, budget=Budget(tokens=tokens)) for i, s in enumerate(STRATEGIES * 2)]
    listed = {j.id: timeless(r) for j, r in Driver(ToyProcess(toy_lm())).run(jobs)}
    driver, events = Driver(ToyProcess(toy_lm()), max_jobs=3), []
    for each in jobs:
        driver.submit(each)
        events += driver.turn()
    events += until_idle(driver)
    assert {e.job: timeless(e.result) for e in events if isinstance(e, Finished)} == listed
    told = {name: [line for e in events if isinstance(e, Started | Told) and e.job == name for line in e.lines] for name in listed}
    assert all(tuple(told[name]) == listed[name].trace[: len(told[name])] and len(told[name]) == len(listed[name].trace) - 1 for name in listed)
    assert sum((e.result.computed for e in events if isinstance(e, Finished)), Cost()).tokens == driver.process.total.tokens
    assert driver.turn() == []


def test_a_watched_answer_grows_token_by_token_and_is_not_mixed_with_others():
    """The first of the answers, also when it ends before the others."""
    num_shorter = 0
    for size in range(1, 30):
        driver = Driver(ToyProcess(toy_lm(seed=4)))
        driver.submit(job("x" * size, Sample(num=3), is_watched=True))
        events = until_idle(driver)
        grown = [e.so_far.prefix.tokens for e in events if isinstance(e, Grown)]
        (result,) = (e.result for e in events if isinstance(e, Finished))
        first, *others = (c.tokens for c in result.candidates)
        assert grown == [first[:num] for num in range(1, len(first))]
        num_shorter += 1 < len(first) < max(map(len, others))
    assert num_shorter >= 3


def test_what_grows_goes_on_from_the_best_so_far():
    driver = Driver(ToyProcess(ENDLESS))
    driver.submit(job("watched", Steps(), is_watched=True))
    driver.submit(job("unwatched", Steps()))
    seen, best = [], ()
    while driver.active or driver.todo:
        for event in driver.turn():
            if isinstance(event, Told) and event.job == "watched" and event.best:
                best = event.best[0].tokens
            elif isinstance(event, Grown):
                assert event.job == "watched" and event.so_far.prefix.tokens[: len(best)] == best
                seen.append(len(event.so_far.prefix.tokens))
    assert seen == sorted(seen) and len(set(seen)) >= 8


def test_a_cancelled_job_leaves_no_work_and_tells_its_best():
    driver = Driver(ToyProcess(ENDLESS))
    driver.submit(job("a", Steps(), max_tokens=100))
    driver.submit(job("bb", Greedy(), max_tokens=30))
    for _ in range(8):
        driver.turn()
    result = driver.cancel("a")
    assert result.stop_reason == "cancelled" and len(result.candidates[0].tokens) == 6
    assert len(driver.process.jobs) == 1 and [r.job.id for r in driver.active] == ["bb"]
    assert driver.cancel("a") is None
    (finished,) = (e for e in until_idle(driver) if isinstance(e, Finished))
    assert finished.job == "bb" and finished.result.stop_reason == "done"
    assert driver.ledger.engine.tokens == driver.process.total.tokens


def test_a_job_that_waits_is_cancelled_without_a_trace():
    driver = Driver(ToyProcess(ENDLESS), max_jobs=1)
    driver.submit(job("a", Greedy()))
    driver.submit(job("bb", Greedy()))
    driver.turn()
    assert driver.cancel("bb") is None
    assert [e.job for e in until_idle(driver) if isinstance(e, Finished)] == ["a"]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_job_that_is_wound_up_ends_in_its_own_way(strategy):
    driver = Driver(ToyProcess(ENDLESS))
    driver.submit(job("a", strategy, max_tokens=100))
    for _ in range(5):
        driver.turn()
    driver.wind_up("a")
    (finished,) = (e for e in driver.turn() if isinstance(e, Finished))
    assert finished.result.stop_reason == "interrupted" and 3 <= len(finished.result.candidates[0].tokens) <= 5
    assert not driver.process.jobs


class Slow(ToyProcess):
    """A step takes a while."""

    def step(self):
        time.sleep(0.01)
        return super().step()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_deadline_is_a_moment_whatever_runs_beside(strategy):
    driver = Driver(Slow(ENDLESS))
    for i in range(6):
        driver.submit(job("x" * (i + 2), Greedy(), max_tokens=40))
    deadline = time.perf_counter() + 0.15
    driver.submit(job("a", strategy, max_tokens=1000, deadline=deadline))
    ends, num_late = {}, 0
    while driver.active or driver.todo:
        num_late += "a" not in ends and time.perf_counter() > deadline
        ends |= {e.job: e.result for e in driver.turn() if isinstance(e, Finished)}
    result = ends["a"]
    assert num_late <= 2 and result.stop_reason == "seconds" and result.candidates[0].tokens
    assert all(r.stop_reason == "done" for name, r in ends.items() if name != "a")


def test_bad_jobs_are_refused_when_they_are_submitted():
    driver = Driver(ToyProcess(toy_lm(), context_len=8))
    with pytest.raises(BudgetTooSmall):
        driver.submit(job("a", Greedy(), budget=Budget(tokens=2)))
    with pytest.raises(PromptTooLong):
        driver.submit(replace(job("a", Greedy()), prompt=Prompt(messages=(("raw", "a" * 20),))))
    assert driver.turn() == []
