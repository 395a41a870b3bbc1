"""The driver on the real default model: true counts, budgets, and the same answers alone, together and after a crash."""

from dataclasses import replace

import pytest

from ponder import catalogue
from ponder.core.asks import Extend, Prefix, Score, chat
from ponder.core.budget import Budget, Cost
from ponder.infer.tree_of_thoughts import as_step, forced
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.run.store import SampleStore
from ponder.testing.run import answer_turn
from ponder.verify.answers import ShortText

SPECS = (
    "greedy",
    "best_of_n:num=4,verifier=p_true",
    "self_consistency:num=4,weigh=path_probability",
    "beam:width=3",
    "diverse_beam:width=2,num_groups=2",
    "particle_filter:num=6,step_tokens=4",
    "rebase:width=4,step_tokens=4",
)
COUNTS = ("prompt_tokens", "reused_tokens", "generated_tokens")


@pytest.fixture(scope="module")
def path(smollm2_path):
    return smollm2_path


def make(path):
    return catalogue.open_model(path)


def jobs(tokens=None, specs=SPECS):
    questions = ("What is the capital of France?", "Name a colour.")
    return [
        Job(
            id=f"{s}/{q}",
            prompt=chat(q, max_tokens=14, answers=ShortText()),
            recipe=Recipe(label=s, strategy=catalogue.strategy(s), budget=budget),
            seed=3,
        )
        for s in specs
        for q in questions
        for budget in [Budget(tokens=tokens)]
    ]


def timeless(result):
    return replace(result, cost=replace(result.cost, seconds=0, cpu_seconds=0))


def run(process, todo, **settings):
    driver = Driver(process, **settings)
    return [timeless(result) for _, result in driver.run(todo)], driver


@pytest.mark.parametrize("tokens", [None, 90])
def test_the_ledger_equals_the_engine_and_no_budget_is_overshot(path, tokens):
    process = make(path)
    results, driver = run(process, jobs(tokens))
    assert {c: getattr(driver.ledger.engine, c) for c in COUNTS} == {c: getattr(process.totals, c) for c in COUNTS}
    computed = process.totals.prompt_tokens + process.totals.generated_tokens
    assert driver.ledger.booked.tokens - driver.ledger.shared_tokens + driver.ledger.recomputed_tokens == computed
    assert sum((r.cost for r in results), Cost()).tokens == driver.ledger.booked.tokens
    assert all(r.candidates and r.text for r in results)
    if tokens is None:
        assert driver.ledger.reuse >= 0.99
    else:
        assert all(r.cost.tokens <= tokens for r in results)
        assert {r.stop_reason for r in results} == {"done", "tokens"}


def test_alone_together_and_resumed_are_the_same(path, tmp_path):
    together, _ = run(make(path), jobs(), max_jobs=12)
    alone, _ = run(make(path), jobs(), max_jobs=1)
    assert together == alone
    store = SampleStore(tmp_path / "s")
    run(make(path), jobs()[:5], store=store, max_jobs=2)
    resumed, driver = run(make(path), jobs(), store=store, max_jobs=3)
    assert [r.trace for r in resumed] == [r.trace for r in alone]
    assert resumed == alone and driver.ledger.stored_answers > 0


def test_a_proposed_thought_becomes_tokens_of_the_answer(path):
    """Its log-probability is that of scoring the text, and the prefix is open: a step of the search goes on from it."""
    process, prompt, text = make(path), chat("What is 9 + 4?", max_tokens=24), ""
    prefix = Prefix(prompt)
    for line in ("9 + 4 = 13\n", "So the answer is 13.\n"):
        text += line
        (told,) = answer_turn((forced(prefix, line),), process)
        prefix = as_step(told, prompt, text)
        (scores,) = answer_turn((Score(prefix=Prefix(prompt), options=(text,)),), process)
        assert (prefix.text, prefix.finish) == (text, None)
        assert prefix.log_p == pytest.approx(scores.log_p[0], abs=1e-3)
    (grown,) = answer_turn((Extend(prefix=prefix, seed=0),), process)
    assert grown.prefix.text.startswith(text) and grown.prefix.is_final
