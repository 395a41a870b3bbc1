"""Searches over steps x laws, on toy models whose trees are known whole."""

import pytest

from ponder.core.asks import Sampling
from ponder.infer.ab_mcts import AbMcts, beta, mixed
from ponder.infer.astar import AStar, drop, progress
from ponder.infer.best_first import BestFirst
from ponder.infer.dvts import Dvts
from ponder.infer.mcts import Mcts, uct
from ponder.infer.rebase import Rebase
from ponder.infer.step_beam import StepBeam
from ponder.infer.tree import Steps
from ponder.infer.tree_of_thoughts import TreeOfThoughts, dfs
from ponder.testing import laws_search, laws_strategy
from ponder.testing.laws_search import known
from ponder.testing.verifiers import Abstaining, Counting, Reckless, Seeing


def searches(steps):
    """Every search of the catalogue, and every setting of it that is another algorithm."""
    return {
        "step_beam": StepBeam(width=4, branch=2, steps=steps),
        "dvts": Dvts(width=4, branch=2, steps=steps),
        "rebase": Rebase(width=5, steps=steps),
        "best_first": BestFirst(branch=3, num_answers=2, max_expansions=8, steps=steps),
        "astar": AStar(branch=2, parallel=1, num_answers=2, max_expansions=8, steps=steps),
        "astar of progress": AStar(cost=progress, branch=3, max_expansions=8, steps=steps),
        "mcts": Mcts(num=8, branch=2, parallel=2, steps=steps),
        "mcts, uct, rollouts": Mcts(num=6, branch=2, curiosity=uct, is_rolled_out=True, steps=steps),
        "ab_mcts": AbMcts(num=12, parallel=3, steps=steps),
        "ab_mcts, beta": AbMcts(num=12, parallel=3, choose=beta, steps=steps),
        "ab_mcts, mixed": AbMcts(num=8, parallel=4, choose=mixed, steps=steps),
        "tree_of_thoughts": TreeOfThoughts(breadth=2, num_thoughts=3, propose=None, steps=steps),
        "tree_of_thoughts, dfs": TreeOfThoughts(breadth=1, num_thoughts=2, order=dfs, propose=None, max_expansions=8, steps=steps),
    }


STEPS = {
    "fluent": Steps(until=("a",)),
    "counting, short steps": Steps(until=(), step_tokens=2, max_steps=3, verifier=Counting("b", abstain_on="aa")),
    "asking": Steps(until=("b",), step_tokens=2, verifier=Seeing("a")),
    "silent": Steps(until=(), step_tokens=1, verifier=Abstaining()),
    "reckless": Steps(until=("a",), step_tokens=2, verifier=Reckless()),
    "looking ahead": Steps(until=(), step_tokens=2, lookahead=2),
    "all given up": Steps(until=("a",), min_reward=1.0),
}
CASES = {f"{name}; {kind}": search for kind, steps in STEPS.items() for name, search in searches(steps).items()}


IN_COMPANY = laws_search.law_same_tree_in_company  # 64 runs each


@pytest.mark.parametrize("law", (*laws_strategy.LAWS, *(law for law in laws_search.LAWS if law is not IN_COMPANY)), ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", CASES)
def test_law(name, law):
    law(CASES[name])


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(("fluent", "asking"))])
def test_same_tree_in_company(name):
    IN_COMPANY(CASES[name])


COOL = Sampling(temperature=0.7)
ALONE = {
    "step_beam": lambda steps: StepBeam(width=1, steps=steps),
    "dvts": lambda steps: Dvts(width=1, branch=1, steps=steps),
    "rebase": lambda steps: Rebase(width=1, steps=steps),
    "best_first": lambda steps: BestFirst(branch=1, steps=steps),
    "astar": lambda steps: AStar(branch=1, steps=steps),
    "mcts": lambda steps: Mcts(num=9, branch=1, steps=steps),
    "mcts of one": lambda steps: Mcts(num=1, branch=1, is_rolled_out=True, steps=steps),
    "ab_mcts": lambda steps: AbMcts(num=1, steps=steps),
    "tree_of_thoughts": lambda steps: TreeOfThoughts(breadth=1, num_thoughts=1, propose=None, steps=steps),
    "tree_of_thoughts, dfs": lambda steps: TreeOfThoughts(breadth=1, num_thoughts=1, order=dfs, propose=None, steps=steps),
}


@pytest.mark.parametrize("steps", (Steps(until=("a",), sampling=COOL), Steps(until=(), step_tokens=1, max_steps=2, sampling=COOL)))
@pytest.mark.parametrize("name", ALONE)
def test_alone_is_a_sample(name, steps):
    laws_strategy.law_alone_is_a_sample(ALONE[name](steps), COOL)


def one_token(verifier):
    return Steps(until=(), step_tokens=1, verifier=verifier, sampling=Sampling())


WIDE = {
    "step_beam": lambda v: StepBeam(width=120, branch=40, steps=one_token(v)),
    "dvts": lambda v: Dvts(width=40, branch=40, steps=one_token(v)),
    "rebase": lambda v: Rebase(width=200, steps=one_token(v)),
    "best_first": lambda v: BestFirst(branch=40, steps=one_token(v)),
    "astar": lambda v: AStar(branch=40, steps=one_token(v)),
    "astar of progress": lambda v: AStar(cost=progress, branch=40, steps=one_token(v)),
    "mcts": lambda v: Mcts(num=99, branch=40, steps=one_token(v)),
    "mcts, uct, rollouts": lambda v: Mcts(num=99, branch=40, curiosity=uct, is_rolled_out=True, steps=one_token(v)),
    "ab_mcts": lambda v: AbMcts(num=250, parallel=10, steps=one_token(v)),
    "ab_mcts, beta": lambda v: AbMcts(num=250, parallel=10, choose=beta, steps=one_token(v)),
    "ab_mcts, mixed": lambda v: AbMcts(num=150, parallel=10, choose=mixed, steps=one_token(v)),
    "tree_of_thoughts": lambda v: TreeOfThoughts(breadth=30, num_thoughts=40, num_answers=99, propose=None, steps=one_token(v)),
    "tree_of_thoughts, dfs": lambda v: TreeOfThoughts(breadth=1, num_thoughts=40, num_answers=99, order=dfs, propose=None, steps=one_token(v)),
}


@pytest.mark.parametrize("name", WIDE)
def test_finds_the_best_answer(name):
    laws_search.law_finds_the_best(WIDE[name])


@pytest.mark.parametrize("cost", (drop, progress))
def test_astar_with_the_exact_heuristic(cost):
    astar = lambda v: AStar(cost=cost, branch=40, parallel=1, steps=one_token(v))
    laws_search.law_expands_no_more_than(astar, lambda v: BestFirst(branch=40, parallel=1, steps=one_token(v)))
    laws_search.law_first_answer_costs_least(astar, cost, [known(seed, is_oracle=True) for seed in range(12)])


@pytest.mark.parametrize("cost", (drop, progress))
def test_astar_where_verdicts_never_rise_puts_the_best_first(cost):
    trees = [known(seed, is_falling=True) for seed in range(12)]
    laws_search.law_first_answer_costs_least(lambda v: AStar(cost=cost, branch=40, parallel=1, steps=one_token(v)), cost, trees)
    for seed, tree in enumerate(trees):
        found = laws_search.searched(AStar(cost=cost, branch=40, parallel=1, steps=one_token(tree.verifier)), laws_search.SMALL, key=seed).result
        assert tree.values[found.candidates[0].tokens] == tree.values[tree.best]
        share = {drop: 2.0, progress: 1.0}[cost]
        assert -found.diagnostics["first_priorities"][0] == pytest.approx(share * (1 - tree.values[tree.best]), abs=1e-12)


def test_progress_is_admissible_under_any_verifier_and_drop_is_not():
    astar = {cost: lambda v, cost=cost: AStar(cost=cost, branch=40, parallel=1, steps=one_token(v)) for cost in (drop, progress)}
    trees = [known(seed) for seed in range(12)]
    laws_search.law_first_answer_costs_least(astar[progress], progress, trees)
    with pytest.raises(AssertionError, match="the least is"):
        laws_search.law_first_answer_costs_least(astar[drop], drop, trees)
