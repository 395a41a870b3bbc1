"""The simulated world is a process like any other, its fast path answers as the obvious one does, and its laws are met."""

import math
import time
from collections import Counter

import pytest

from ponder import catalogue
from ponder.core.asks import Expand, Extend, Prefix, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.testing.laws_process import LAWS
from ponder.testing.run import answer_turn
from ponder.testing.simulator import Simulator, World, play, play_many
from ponder.testing.toy import ToyProcess

TINY = World(depth=(2, 2), step_tokens=3, num_wordings=1, num_wrong=2, step_accuracy=0.6, is_telling=True)
SMALL = World(depth=(1, 3), step_tokens=4, num_wordings=3, num_wrong=3, decay=0.3)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("world", (SMALL, World(depth=(3, 3))), ids=("small", "default"))
def test_process_law(law, world):
    law(lambda: Simulator(world), world.prompt(5), 1e-9)


@pytest.mark.parametrize("sampling", (Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.6), Sampling(top_p=0.8), Sampling(top_k=2)))
@pytest.mark.parametrize("until, max_tokens", [((), None), (("\n",), None), (("\n",), 2), ((), 5), ((".",), None)])
def test_fast_and_slow_agree(sampling, until, max_tokens):
    fast, slow = Simulator(SMALL), ToyProcess(SMALL)
    for index in range(6):
        prefixes = [Prefix(SMALL.prompt(index))]
        for prefix in prefixes:
            ask = Extend(prefix=prefix, seed=7 + index, until=until, max_tokens=max_tokens, sampling=sampling, certainty=True)
            (quick,), (wanted,) = answer_turn([ask], fast), answer_turn([ask], slow)
            assert (quick.prefix.tokens, quick.prefix.text, quick.finish) == (wanted.prefix.tokens, wanted.prefix.text, wanted.finish)
            assert quick.prefix.log_p == pytest.approx(wanted.prefix.log_p, abs=1e-12)
            assert quick.prefix.log_q == pytest.approx(wanted.prefix.log_q, abs=1e-12)
            assert quick.prefix.certainty == pytest.approx(wanted.prefix.certainty, rel=1e-12)
            assert quick.cost.generated_tokens == wanted.cost.generated_tokens
            if not quick.prefix.is_final:
                prefixes.append(quick.prefix)


def test_the_world_is_what_its_settings_say():
    """The exact distribution of answers over every completion is the closed form; steps and lengths are as set."""
    for index in range(4):
        problem, total = TINY.problem(index), Counter()
        for prefix in TINY.completions(TINY.prompt(index)):
            total[prefix.prompt.answers.read(prefix.text)] += math.exp(prefix.log_p)
            assert len(prefix.tokens) == 2 * 3 + 2 and prefix.text.count("\n") == 2
        assert [total[str(j)] for j in range(3)] == pytest.approx(problem.answers, abs=1e-12)
    depths = {len(SMALL.problem(i).sound) for i in range(50)}
    easy, hard = World(step_accuracy=0.95), World(step_accuracy=0.6)
    assert depths == {1, 2, 3}
    assert sum(easy.problem(i).accuracy > hard.problem(i).accuracy for i in range(50)) == 50
    assert World(decay=1.0, step_spread=0.0).problem(1).sound == tuple(sorted(World(decay=1.0, step_spread=0.0).problem(1).sound, reverse=True))


def test_greedy_is_not_always_right_and_expand_lists_the_likely_words():
    rights = [played.is_right for played in play_many(catalogue.strategy("greedy"), World(step_spread=2.0), 200)]
    assert 0.3 < sum(rights) / 200 < 0.9
    (told,) = answer_turn([Expand(prefix=Prefix(SMALL.prompt(0)), num=6)], Simulator(SMALL))
    assert sum(math.exp(child.log_p) for child in told.children) == pytest.approx(1.0)


def test_any_prompt_that_names_a_problem_is_about_it():
    critique = Prompt(messages=(("user", "problem 7"), ("assistant", "s0 .\n#3"), ("user", "Is that right? Solve it again.")))
    assert SMALL.problem_of(critique) == SMALL.problem(7)
    assert SMALL.problem_of(Prompt(messages=(("user", "hello"),))) == SMALL.problem(0)


def test_budgets_end_a_strategy_between_turns():
    strategy = catalogue.strategy("particle_filter")
    whole, cut = (play(strategy, Simulator(World()), 3, max_tokens=limit) for limit in (None, 200))
    assert cut.tokens < whole.tokens and cut.outcome.candidates


SPECS = {
    "tree_of_thoughts": "tree_of_thoughts:propose=none"
}  # what is proposed becomes the answer's own tokens, and the world has words of its own alone


@pytest.mark.parametrize("name", catalogue.STRATEGIES)
def test_every_strategy_of_the_catalogue_runs_unchanged(name):
    for index in range(2):
        played = play(catalogue.strategy(SPECS.get(name, name)), Simulator(SMALL), index)
        assert played.outcome.candidates[0].answer is not None


def test_a_fast_process_is_faster():
    """At least four times as fast as the obvious process, on whole answers (typically far more)."""
    world = World(num_wordings=4)
    asks = [Extend(prefix=Prefix(world.prompt(i)), seed=i) for i in range(12)]
    seconds = []
    for process in (ToyProcess(world), Simulator(world)):
        answer_turn(asks, process)  # tables are made
        start = time.process_time()
        answer_turn(asks, process)
        seconds.append(time.process_time() - start)
    assert seconds[0] > 4 * seconds[1]


@pytest.mark.parametrize(
    "settings", ({"step_accuracy": 1.0}, {"depth": (3, 2)}, {"num_wrong": 0}, {"step_tokens": 1}, {"num_wordings": 0}, {"spread": -1.0})
)
def test_impossible_worlds_are_refused(settings):
    with pytest.raises(BadField):
        World(**settings)
