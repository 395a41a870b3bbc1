"""Every strategy gives the same candidates with a drafter as without, and its cost counts the draft."""

import pytest

from engine.test_runners import opened
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.catalogue import STRATEGIES
from ponder.core.asks import Prompt
from ponder.core.budget import Budget
from ponder.core.roles import Process, Strategy
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe, Result

PROMPT = Prompt(messages=(("user", "abcabc"),), max_tokens=6)


def answered(process: Process, strategy: Strategy) -> Result:
    job = Job(id="x", prompt=PROMPT, recipe=Recipe(label="x", strategy=strategy, budget=Budget(tokens=700)), seed=3)
    ((_, result),) = Driver(process).run([job])
    return result


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_candidates(name: str):
    plain = answered(opened(None, is_native=True), STRATEGIES[name])
    drafted = answered(opened(DraftModel(least=0.0, num=3), is_native=True), STRATEGIES[name])
    assert plain.stop_reason == drafted.stop_reason != "failed"
    if plain.stop_reason == "done":  # where the budget ends it, what is cut off is a matter of when
        assert drafted.candidates == plain.candidates and drafted.confidence == plain.confidence
        assert drafted.cost.generated_tokens == plain.cost.generated_tokens
    assert plain.cost.drafted_tokens == 0
    assert drafted.cost.drafted_tokens >= drafted.cost.accepted_tokens
