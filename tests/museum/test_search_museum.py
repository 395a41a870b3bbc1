"""Every bug of a tree search breaks its law, and what we do instead keeps it. Sources as in test_museum."""

import pytest

from museum import search_bugs as bugs
from museum.inference_bugs import Exhibit
from ponder.infer import ab_mcts, mcts, rebase
from ponder.infer.ab_mcts import AbMcts, gaussian_posterior
from ponder.infer.astar import AStar
from ponder.infer.best_first import BestFirst
from ponder.infer.dvts import Dvts
from ponder.infer.mcts import Mcts
from ponder.infer.step_beam import StepBeam
from ponder.infer.tree import Steps
from ponder.testing import laws_search, laws_strategy

EXHIBITS = (
    Exhibit("beams are refilled after an answer", "search-and-learn beam_search: n beams stay active (code read)",
            bugs.law_pays_for_five, bugs.RefillingBeam(width=5, branch=2, steps=bugs.TWO), StepBeam(width=5, branch=2, steps=bugs.TWO)),
    Exhibit("answers padded by copies", "search-and-learn beam_search (code read)",
            laws_strategy.law_candidates_are_distinct, bugs.PaddedStepBeam(steps=bugs.TWO), StepBeam(steps=bugs.TWO)),
    Exhibit("every share rounded up", "arXiv:2408.00724 with the remainder left out, our own",
            laws_search.law_shares, bugs.all_rounded_up, rebase.shares),
    Exhibit("the remainder goes down in order of arrival", "our own",
            laws_search.law_shares, bugs.first_come_first_served, rebase.shares),
    Exhibit("answers of earlier levels are lost", "https://github.com/maitrix-org/llm-reasoners/issues/65",
            laws_search.law_best_never_gets_worse, bugs.LastLevelBeam(steps=bugs.TWO), StepBeam(steps=bugs.TWO)),
    Exhibit("the last answer instead of the best", "https://github.com/princeton-nlp/tree-of-thought-llm/issues/22",
            laws_search.law_returns_the_best_it_met, bugs.LastVisited(num_answers=4, steps=bugs.TWO), BestFirst(num_answers=4, steps=bugs.TWO)),
    Exhibit("nothing to show before the end", "our own",
            laws_strategy.law_shows_its_best, bugs.ShowsNothing(steps=bugs.TWO), StepBeam(steps=bugs.TWO)),
    Exhibit("subtrees are compared", "our own",
            bugs.law_three_steps_apart, bugs.MixedSubtrees, Dvts),
    Exhibit("seeds from a shared counter", "our own",
            bugs.law_seeds_alone_or_in_company, bugs.CountedSeeds(until=("a",)), Steps(until=("a",))),
    Exhibit("cousins share seeds", "our own",
            bugs.law_cousins_differ, bugs.PositionSeeds(until=(), step_tokens=1), Steps(until=(), step_tokens=1)),
    Exhibit("the tree of the last question", "https://github.com/suragnair/alpha-zero-general/issues/206",
            laws_search.law_same_tree_in_company, bugs.KeepsItsTree(num=8, parallel=1, branch=2, steps=bugs.ONE),
            Mcts(num=8, parallel=1, branch=2, steps=bugs.ONE)),
    Exhibit("beliefs drawn from global state", "TreeQuest prob_state: module-level random numbers (code read)",
            laws_search.law_same_tree_in_company, bugs.GlobalThompson(num=12, steps=bugs.ONE), AbMcts(num=12, steps=bugs.ONE)),
    Exhibit("NaN is a verdict", "https://github.com/leela-zero/leela-zero/pull/883",
            bugs.law_any_verdict_is_survived, bugs.TrustingSteps(until=("a",), verifier=bugs.WILD), Steps(until=("a",), verifier=bugs.WILD)),
    Exhibit("silence gives a branch up", "our own",
            bugs.law_silence_leaves_the_search_going, bugs.SilenceKills(until=(), step_tokens=1, verifier=bugs.SILENT),
            Steps(until=(), step_tokens=1, verifier=bugs.SILENT)),
    Exhibit("the estimate is handed on as cost", "https://github.com/pgRouting/pgrouting/issues/2394",
            bugs.law_progress_pays_least, bugs.EstimatesPaid, AStar),
    Exhibit("the cost of the other direction", "our own: what secondary sources say of arXiv:2505.13672 reads both ways",
            bugs.law_progress_pays_least, bugs.WrongWay, AStar),
    Exhibit("the goal is tested when it is met", "our own",
            bugs.law_goal_is_tested_when_it_stands_first, bugs.first_met, bugs.TAKE),
    Exhibit("only the leaf learns", "https://github.com/bcollazo/deckgym-core/pull/275",
            bugs.law_ancestors_are_told, bugs.leaf_alone_learns, mcts.learn),
    Exhibit("answers are expanded", "https://github.com/MARIO-Math-Reasoning/Super_MARIO/issues/34",
            bugs.law_leaves_answers_alone, bugs.ExpandsAnswers(num=20, steps=bugs.TWO), Mcts(num=20, steps=bugs.TWO)),
    Exhibit("a posterior without its prior", "our own",
            bugs.law_posterior_is_learnt_one_by_one, bugs.sums_alone, gaussian_posterior),
    Exhibit("a copy is a success", "our own: in arXiv:2503.04412 two new nodes are never equal",
            bugs.law_finds_the_best_of_few, bugs.copies_are_news, ab_mcts.learn),
)  # fmt: skip


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)
def test_the_law_kills_the_bug(exhibit):
    with pytest.raises(AssertionError):
        exhibit.law(exhibit.wrong)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)
def test_the_right_way_passes(exhibit):
    exhibit.law(exhibit.right)


def test_every_exhibit_names_its_source():
    assert all(e.source for e in EXHIBITS) and len({e.name for e in EXHIBITS}) == len(EXHIBITS)
