"""Groups of answers that read each other, in the driver: budgets, booking, resume, refusals. On the toy process, where every count is known."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.core.asks import Confer, Extend, Outcome, Prefix, Turn, candidate
from ponder.core.budget import Budget, Cost
from ponder.core.errors import NotOffered
from ponder.core.guarantee import Guarantee
from ponder.core.needs import WORDS
from ponder.infer.hogwild import Hogwild
from ponder.infer.sample import Sample
from ponder.run.driver import Driver, Job, ask
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore
from ponder.testing.listening import ListeningLM
from ponder.testing.toy import ToyProcess, toy_lm
from run.test_driver import Failing, Interrupted, jobs_of, timeless

LM = ListeningLM(toy_lm("abc", seed=4))
SHORT = {"task": "{question} {workers}", "opening": "{name}, {others}"}
BOTH = Hogwild(num=2, enough=None, **SHORT)


@dataclass(frozen=True)
class Twice:
    """A group, then a sample beside another group, as far as the budget goes."""

    guarantee = Guarantee.BIASED

    def run(self, prompt, rng):
        group = Confer(asks=tuple(Extend(prefix=Prefix(prompt), seed=rng.seed(i)) for i in range(3)))
        (first,) = yield Turn((group,))
        best = tuple(candidate(x.prefix) for x in first.extensions)
        alone = Extend(prefix=Prefix(prompt), seed=rng.seed(9))
        more, one = yield Turn((replace(group, asks=tuple(replace(a, seed=a.seed + 1) for a in group.asks)), alone), best)
        return Outcome((*best, *(candidate(x.prefix) for x in more.extensions), candidate(one.prefix)))


STRATEGIES = [BOTH, Hogwild(num=3, layout="interleaved", **SHORT), Twice()]


def run(jobs, process=None, **settings):
    driver = Driver(process or ToyProcess(LM), **settings)
    return [result for _, result in driver.run(jobs)], driver


@given(tokens=st.integers(5, 130), strict=st.booleans(), index=st.integers(0, len(STRATEGIES) - 1))
@settings(deadline=None, max_examples=60)
def test_no_token_beyond_the_budget_and_always_an_answer(tokens, strict, index):
    for result in run(jobs_of([STRATEGIES[index]], Budget(tokens=tokens, strict=strict)))[0]:
        assert result.cost.tokens <= tokens
        assert result.candidates
        assert result.stop_reason in ("done", "tokens")


def test_what_a_budget_cuts_off_is_said():
    """With room for all it is done; with less the cut is named, and what there is is a beginning of the same."""
    calm = ListeningLM(toy_lm("abcdef", seed=2))  # ends seldom
    jobs = [replace(jobs_of([BOTH], Budget())[0], seed=seed) for seed in range(40)]
    job = next(job for job in jobs if min(len(c.tokens) for c in run([job], ToyProcess(calm))[0][0].candidates) > 4)
    prompts = 1 + len("a Alice and Bob") + len("Alice, Bob") + len("Bob, Alice")  # what they begin alike is paid once
    (whole,), _ = run([job], ToyProcess(calm))
    num = whole.cost.generated_tokens
    assert whole.cost.prompt_tokens == prompts and whole.stop_reason == "done"
    for left in (2, 3, 4, 7):
        (cut,), _ = run([replace(job, recipe=replace(job.recipe, budget=Budget(tokens=prompts + left)))], ToyProcess(calm))
        assert cut.stop_reason == "tokens" and left - 1 <= cut.cost.generated_tokens <= left < num
        assert all(any(w.tokens[: len(c.tokens)] == c.tokens for w in whole.candidates) for c in cut.candidates)
    (enough,), _ = run([replace(job, recipe=replace(job.recipe, budget=Budget(tokens=prompts + 2 * 12)))], ToyProcess(calm))
    assert (enough.stop_reason, enough.candidates) == ("done", whole.candidates)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tokens", [70, 10_000])
def test_ledger_equals_the_process(strategy, tokens):
    results, driver = run(jobs_of([strategy], Budget(tokens=tokens)))
    ledger = driver.ledger
    assert replace(ledger.engine, flops=0) == replace(driver.process.total, flops=0)
    computed = ledger.engine.prompt_tokens + ledger.engine.generated_tokens
    assert ledger.booked.tokens - ledger.shared_tokens + ledger.recomputed_tokens == computed
    assert sum(r.cost.tokens for r in results) == ledger.booked.tokens
    total = sum((replace(r.cost, seconds=0, cpu_seconds=0, wasted_tokens=0) for r in results), Cost())
    assert total == replace(ledger.booked, seconds=0, cpu_seconds=0)
    assert all(r.cost.wasted_tokens == 0 for r in results)


@pytest.mark.parametrize("tokens", [60, 90, None])
def test_neighbours_and_order_change_nothing(tokens):
    jobs = jobs_of([*STRATEGIES, Sample(num=2)], Budget(tokens=tokens))
    together, _ = run(jobs, max_jobs=16)
    alone, _ = run(jobs, max_jobs=1)
    backwards, _ = run(jobs[::-1], max_jobs=3)
    assert [timeless(r) for r in together] == [timeless(r) for r in alone] == [timeless(r) for r in backwards[::-1]]


@pytest.mark.parametrize("die_at", [3, 12, 33])
@pytest.mark.parametrize("tokens", [70, None])
def test_resume_repeats_nothing_and_gives_the_same_bytes(tmp_path, die_at, tokens):
    jobs = jobs_of(STRATEGIES, Budget(tokens=tokens))
    whole, _ = run(jobs)
    process = Failing(LM)
    process.steps_left = die_at
    with pytest.raises(Interrupted):
        run(jobs, process, store=SampleStore(tmp_path / "s.sqlite"), max_jobs=2)
    store = SampleStore(tmp_path / "s.sqlite")
    kept = len(store)
    again, driver = run(jobs, store=store)
    assert [r.trace for r in again] == [r.trace for r in whole]
    assert driver.ledger.stored_answers >= kept
    third, idle = run(jobs, store=store)
    assert idle.ledger.steps == 0 and [r.trace for r in third] == [r.trace for r in whole]


def test_every_setting_is_part_of_the_key():
    store = SampleStore(":memory:")
    prompt = jobs_of([BOTH], Budget())[0].prompt
    asks = tuple(Extend(prefix=Prefix(prompt), seed=i) for i in range(2))
    plain = Confer(asks=asks)
    others = [
        replace(plain, layout="combined"), replace(plain, separator="."), replace(plain, enough=1), replace(plain, asks=asks[::-1]),
        replace(plain, asks=(asks[0], replace(asks[1], seed=5))),
    ]  # fmt: skip
    process = ToyProcess(LM)
    ticket = process.add(plain)
    done = dict[int, object]()
    while ticket not in done:
        done.update(process.step())
    store.put(process.model_id, plain, done[ticket])
    assert store.get(process.model_id, plain) == done[ticket]
    assert all(store.get(process.model_id, other) is None for other in others)


class Deaf(ToyProcess):
    offers = frozenset(WORDS) - {"usd", "confer"}


def test_a_process_that_cannot_is_refused_before_any_work():
    process = Deaf(LM)
    with pytest.raises(NotOffered, match="needs answers that read each other while they are written"):
        ask(process, jobs_of([BOTH], Budget())[0].prompt, BOTH)
    assert process.total == Cost()
    assert ask(process, jobs_of([BOTH], Budget())[0].prompt, Hogwild(num=1)).candidates


def test_a_group_that_is_cancelled_shows_what_there_is():
    driver = Driver(ToyProcess(LM))
    prompt = replace(jobs_of([BOTH], Budget())[0].prompt, max_tokens=40)
    driver.submit(Job(id="a", prompt=prompt, recipe=Recipe(label="x", strategy=BOTH, budget=Budget()), seed=3))
    for _ in range(2):
        driver.turn()
    driver.wind_up("a")
    while not (events := driver.turn()):
        pass
    assert events[-1].result.candidates and events[-1].result.stop_reason == "interrupted"
    assert not driver.process.progress()
