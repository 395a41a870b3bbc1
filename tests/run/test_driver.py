"""The driver: budgets, booking, determinism, resume. All on the toy process, where every count is known."""

import time
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.asks import Extend, Judge, Outcome, Prefix, Prompt, Sampling, Score, Turn, Verdict, candidate
from ponder.core.budget import Budget, Cost
from ponder.core.errors import BudgetTooSmall, DeadParticles, PonderError, PromptTooLong
from ponder.infer.best_of_n import BestOfN
from ponder.infer.greedy import Greedy
from ponder.infer.sample import Sample
from ponder.run.driver import Driver, Job, ask
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore
from ponder.testing.toy import ToyProcess, toy_lm


@dataclass(frozen=True)
class Likelihood:
    """A verifier that asks the model: log p of one more character after the answer's text."""

    name: str = "likelihood"

    def asks(self, prompt, candidates):
        again = Prompt(messages=(("raw", "ab"),))
        return tuple(Score(prefix=Prefix(again), options=(c.text or "a",)) for c in candidates)

    def judge(self, prompt, candidates, answers):
        return tuple(Verdict(a.log_p[0], "log_p") if a.log_p else Verdict(None, "abstain") for a in answers)


@dataclass(frozen=True)
class Steps:
    """Extends one prefix by `size` tokens at a time; forks it in every step and keeps the first fork."""

    size: int = 3
    guarantee = Greedy.guarantee

    def run(self, prompt, rng):
        prefix = Prefix(prompt)
        step = 0
        while not prefix.is_final:
            asks = tuple(Extend(prefix=prefix, seed=rng.seed(step, i), max_tokens=self.size) for i in range(2))
            answers = yield Turn(asks, (candidate(prefix),))
            prefix, step = answers[0].prefix, step + 1
        return Outcome((candidate(prefix),))


STRATEGIES = [
    Greedy(),
    Sample(num=5),
    BestOfN(num=4, verifier=Likelihood()),
    Steps(),
]


def jobs_of(strategies, budget, max_tokens=12):
    prompts = [Prompt(messages=(("raw", text),), max_tokens=max_tokens) for text in ("a", "ba", "aab")]
    return [
        Job(id=f"{i}-{j}", prompt=p, recipe=Recipe(label=str(s), strategy=s, budget=budget), seed=j)
        for i, s in enumerate(strategies)
        for j, p in enumerate(prompts)
    ]


def run(jobs, process=None, **settings):
    driver = Driver(process or ToyProcess(toy_lm()), **settings)
    return [result for _, result in driver.run(jobs)], driver


@given(tokens=st.integers(5, 80), strict=st.booleans(), index=st.integers(0, len(STRATEGIES) - 1))
@settings(deadline=None, max_examples=120)
def test_no_token_beyond_the_budget_and_always_an_answer(tokens, strict, index):
    results, _ = run(jobs_of([STRATEGIES[index]], Budget(tokens=tokens, strict=strict)))
    for result in results:
        assert result.cost.tokens <= tokens
        assert result.candidates
        assert result.stop_reason in ("done", "tokens")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tokens", [12, 30, 10_000])
def test_ledger_equals_the_process(strategy, tokens):
    results, driver = run(jobs_of([strategy], Budget(tokens=tokens)))
    total = driver.process.total
    assert replace(driver.ledger.engine, flops=0) == replace(total, flops=0)
    ledger = driver.ledger
    computed = ledger.engine.prompt_tokens + ledger.engine.generated_tokens
    assert ledger.booked.tokens - ledger.shared_tokens + ledger.recomputed_tokens == computed
    assert sum(r.cost.tokens for r in results) == driver.ledger.booked.tokens
    assert sum((replace(r.cost, seconds=0, cpu_seconds=0, wasted_tokens=0) for r in results), Cost()) == replace(
        driver.ledger.booked, seconds=0, cpu_seconds=0
    )


class Interrupted(Exception):
    pass


class Failing(ToyProcess):
    """Dies at its n-th step."""

    steps_left = 10**9

    def step(self):
        self.steps_left -= 1
        if self.steps_left < 0:
            raise Interrupted
        return super().step()


def timeless(result):
    return replace(result, cost=replace(result.cost, seconds=0, cpu_seconds=0))


@pytest.mark.parametrize("tokens", [14, 25, 60, None])
def test_neighbours_and_order_change_nothing(tokens):
    jobs = jobs_of(STRATEGIES, Budget(tokens=tokens))
    together, _ = run(jobs, max_jobs=16)
    alone, _ = run(jobs, max_jobs=1)
    backwards, _ = run(jobs[::-1], max_jobs=3)
    assert [timeless(r) for r in together] == [timeless(r) for r in alone] == [timeless(r) for r in backwards[::-1]]


@pytest.mark.parametrize("die_at", [1, 3, 7, 12, 20, 33])
@pytest.mark.parametrize("tokens", [25, None])
def test_resume_repeats_nothing_and_gives_the_same_bytes(tmp_path, die_at, tokens):
    jobs = jobs_of(STRATEGIES, Budget(tokens=tokens))
    whole, _ = run(jobs)
    store = SampleStore(tmp_path / "s.sqlite")
    process = Failing(toy_lm())
    process.steps_left = die_at
    with pytest.raises(Interrupted):
        run(jobs, process, store=store, max_jobs=2)
    store.close()
    store = SampleStore(tmp_path / "s.sqlite")
    kept = len(store)
    assert kept > 0 or die_at < 20
    again, driver = run(jobs, store=store)
    assert [r.trace for r in again] == [r.trace for r in whole]
    assert driver.ledger.stored_answers >= kept
    third, idle = run(jobs, store=store)
    assert idle.ledger.steps == 0 and [r.trace for r in third] == [r.trace for r in whole]


def test_a_capped_answer_goes_on_when_others_leave_tokens_over():
    long = jobs_of([Sample(num=5)], Budget(tokens=10_000), max_tokens=30)
    free, _ = run(long)
    need = max(r.cost.tokens for r in free)
    tight, _ = run(jobs_of([Sample(num=5)], Budget(tokens=need), max_tokens=30))
    assert [[c.tokens for c in r.candidates] for r in tight] == [[c.tokens for c in r.candidates] for r in free]
    assert all(r.stop_reason == "done" for r in tight)


class Slow(ToyProcess):
    def step(self):
        time.sleep(0.01)
        return super().step()


@pytest.mark.parametrize("strict", [False, True])
def test_seconds_overshoot_at_most_one_step(strict):
    lm = replace(toy_lm(), table=((0.5, 0.5, 0.0),) * 3)  # never ends by itself
    results, driver = run(jobs_of([Sample(num=3)], Budget(seconds=0.1, strict=strict), max_tokens=500)[:1], Slow(lm))
    assert results[0].stop_reason == "seconds" and 0 < len(results[0].candidates[0].tokens) < 30
    assert results[0].cost.seconds <= 0.1 + (0 if strict else 1.5 * max(driver.step_times)) + 0.01
    assert replace(driver.ledger.engine, flops=0) == replace(driver.process.total, flops=0)


def test_calls_and_flops_are_limits_too():
    results, _ = run(jobs_of([Sample(num=5)], Budget(calls=3)))
    assert all(r.cost.calls == 3 and r.stop_reason == "calls" for r in results)
    process = ToyProcess(toy_lm())
    limit = 20 * process.flops(1, process.context_len)
    results, _ = run(jobs_of([Sample(num=5)], Budget(flops=limit, strict=True)), process)
    assert all(0 < r.cost.flops <= limit for r in results)


def test_stopping_returns_the_best_so_far():
    count = {"loops": 0}

    def should_stop():
        count["loops"] += 1
        return count["loops"] > 12

    results, driver = run(jobs_of([Steps(size=1)], Budget(), max_tokens=200)[:1], should_stop=should_stop)
    assert results[0].stop_reason in ("interrupted", "done") and results[0].candidates
    assert not driver.process.jobs, "work was left in the process"


def test_bad_jobs_are_refused_before_any_work():
    with pytest.raises(BudgetTooSmall, match="cannot pay one step"):
        run(jobs_of([Greedy()], Budget(tokens=2)))
    with pytest.raises(PromptTooLong):
        run(jobs_of([Greedy()], Budget()), ToyProcess(toy_lm(), context_len=2))


@dataclass(frozen=True)
class Verbose:
    """Asks again with a prompt of `size` characters; returns both answers."""

    size: int
    guarantee = Greedy.guarantee

    def run(self, prompt, rng):
        (first,) = yield Turn((Extend(prefix=Prefix(prompt), seed=1),))
        long = Prefix(Prompt(messages=(("raw", "x" * self.size),), max_tokens=5))
        judge = Judge(verifier=Likelihood(), prompt=prompt, candidates=(candidate(first.prefix),))
        asks = (Extend(prefix=long, seed=2), Score(prefix=long, options=("a",)), judge)
        told = yield Turn(asks, (candidate(first.prefix),))
        return Outcome(tuple(candidate(a.prefix) for a in (first, told[0])), diagnostics={"scores": list(told[1].log_p)})


@pytest.mark.parametrize(("size", "fits"), [(10, True), (62, True), (63, False), (500, False)])
def test_a_second_prompt_that_does_not_fit_is_answered_free_and_the_job_goes_on(size, fits):
    (result,), driver = run(jobs_of([Verbose(size)], Budget(), max_tokens=5)[:1], ToyProcess(toy_lm(), context_len=64))
    first, second = result.candidates
    assert result.stop_reason == "done" and first.tokens and bool(second.tokens) == fits == bool(result.diagnostics["scores"])
    assert second.finish == "length" or fits
    assert not driver.process.jobs and result.cost.generated_tokens == len(first.tokens) + len(second.tokens)


@dataclass(frozen=True)
class Dying:
    """Lives for one turn, then finds all its particles dead."""

    guarantee = Greedy.guarantee

    def run(self, prompt, rng):
        (answer,) = yield Turn((Extend(prefix=Prefix(prompt), seed=1, max_tokens=2),))
        yield Turn((Extend(prefix=Prefix(prompt), seed=2, max_tokens=2),), (candidate(answer.prefix),))
        raise DeadParticles("all 3 particles have weight zero")


def test_a_job_fails_alone_with_its_best_so_far():
    results, driver = run(jobs_of([Dying(), Sample(num=3)], Budget()))
    assert [r.stop_reason for r in results] == ["failed"] * 3 + ["done"] * 3
    assert all("weight zero" in r.diagnostics["error"] and r.candidates for r in results[:3])
    assert not driver.process.jobs


def test_seeds_reach_the_samples():
    one, other = (run([replace(j, seed=s) for j in jobs_of([Sample(num=5)], Budget())])[0] for s in (1, 2))
    assert [r.candidates for r in one] != [r.candidates for r in other]
    greedy = run(jobs_of([Sample(num=2, sampling=Sampling(temperature=0))], Budget()))[0]
    assert all(r.candidates[0].tokens == r.candidates[1].tokens for r in greedy)


@dataclass
class Recorder:
    name: str = "recorder"
    seen: list = field(default_factory=list)

    def asks(self, prompt, candidates):
        return ()

    def judge(self, prompt, candidates, answers):
        self.seen.append(len(candidates))
        return tuple(Verdict(1.0) for _ in candidates)


def test_a_verifier_judges_in_one_batch():
    recorder = Recorder()
    run(jobs_of([BestOfN(num=4, verifier=recorder)], Budget())[:1])
    assert recorder.seen == [4]
    assert Judge(verifier=recorder, prompt=Prompt(messages=()), candidates=()).verifier is recorder


def test_ask_is_one_job():
    prompt = Prompt(messages=(("raw", "a"),), max_tokens=9)
    assert ask(ToyProcess(toy_lm()), prompt, Sample(num=2), Budget(tokens=12), seed=1).cost.tokens <= 12
    with pytest.raises(PonderError, match="weight zero"):
        ask(ToyProcess(toy_lm()), prompt, Dying())
