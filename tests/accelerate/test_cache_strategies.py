"""Every strategy under a cache policy: with all keys kept it gives what it gives without a policy, bit for bit; with some dropped it
comes to its end, twice to the same one, and leaves no page behind."""

import pytest

from accelerate.test_cache_policies import DECODER, keeping, policy
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import STRATEGIES
from ponder.core.asks import Candidate, chat
from ponder.core.budget import parse_budget
from ponder.core.errors import NotOffered
from ponder.engine.process import LocalProcess, Settings
from ponder.run.driver import Driver, Job
from ponder.run.needs import needs_of_strategy
from ponder.run.recipe import Recipe

PROMPT = chat("Some words that are read before the question. " * 2 + "Which?", max_tokens=12)


def outcome(process: LocalProcess, name: str) -> tuple[str, str | None, tuple[Candidate, ...]]:
    job = Job(id=name, prompt=PROMPT, recipe=Recipe(label=name, strategy=STRATEGIES[name], budget=parse_budget("400 tokens")), seed=1)
    ((_, result),) = Driver(process).run([job])
    assert result.stop_reason != "failed", result.diagnostics
    return result.stop_reason, result.answer, result.candidates


ABLE = [name for name in STRATEGIES if "confer" not in needs_of_strategy(STRATEGIES[name], PROMPT)]


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(ABLE)))
def test_answers_that_read_each_other_are_refused(name: str):
    with pytest.raises(NotOffered, match="read each other"):
        outcome(keeping(policy("h2o", 0.3)), name)


@pytest.mark.parametrize("name", ABLE)
def test_every_strategy(name: str):
    plain = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    whole = keeping(policy("h2o", 4096))
    assert outcome(whole, name)[1:] == outcome(plain, name)[1:]
    some = [keeping(policy("h2o", 0.3)), keeping(policy("h2o", 0.3), chunk=11, max_rows=3)]
    assert outcome(some[0], name)[1] == outcome(some[1], name)[1]
    for process in (whole, *some):
        process.drop_cache()
        assert process.pool.num_used == 0, "pages leak"
    assert some[0].keeper.kept.keys_kept < some[0].keeper.kept.keys_seen
