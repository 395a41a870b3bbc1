"""What each search does besides the laws: its shares, costs, posteriors, visits, proposals; and searches under the driver."""

import itertools
import math
import random
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest
import torch

from ponder.core.asks import Extend, Prefix, Prompt, Sampling, Verdict
from ponder.core.budget import Budget
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.core.votes import by_verdict, one_each
from ponder.infer import ab_mcts
from ponder.infer.ab_mcts import AbMcts, Arms, beta_posterior, gaussian, gaussian_posterior, mixed, shared_mean
from ponder.infer.astar import AStar, drop, progress
from ponder.infer.best_first import BestFirst
from ponder.infer.dvts import Dvts
from ponder.infer.mcts import Mcts, Visits, learn, puct, uct
from ponder.infer.rebase import Rebase, shares
from ponder.infer.step_beam import StepBeam
from ponder.infer.tree import Frontier, Steps, Tree
from ponder.infer.tree_of_thoughts import PROPOSE, TreeOfThoughts, dfs
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.testing import laws_search, laws_strategy
from ponder.testing.laws_search import DEEP, LM, SMALL, known, searched
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyLM, ToyProcess
from ponder.testing.verifiers import Abstaining, Counting, Lookup, Reckless

TWO = Steps(until=(), step_tokens=2)
ONE = Steps(until=(), step_tokens=1)


def grown(tree, parent, *values, text="a", finish=None):
    """Children of `parent` with these probabilities as verdicts (None: no verdict)."""
    nodes = []
    for value in values:
        number = len(parent.children)
        prefix = Prefix(tree.prompt, (*parent.prefix.tokens, number), parent.prefix.text + text, -1.0, -1.0, finish=finish)
        nodes.append(tree.add(parent, number, prefix))
        nodes[-1].verdict = None if value is None else Verdict(value, "probability")
    return nodes


# ---- shares


def test_shares():
    laws_search.law_shares(shares)
    assert shares([0.9, 0.5, 0.1], 8, 0.2) == [7, 1, 0]
    assert shares([0.2], 5, 0.2) == [5]
    assert shares([0.5, 0.5, 0.5], 4, 0.2) == [2, 1, 1]


@pytest.mark.parametrize("make", (lambda n, s: Rebase(width=n, steps=s), lambda n, s: StepBeam(width=n, branch=2, steps=s)))
@pytest.mark.parametrize("steps", (TWO, ONE, Steps(until=("a",), verifier=Counting("b")), Steps(until=("a",), verifier=Reckless())))
def test_width_is_what_is_paid_for(make, steps):
    for width in (1, 5, 8):
        laws_search.law_pays_for_width_answers(make(width, steps), width)


def test_subtrees_stay_apart():
    laws_search.law_subtrees_stay_apart(lambda num: Dvts(width=3 * num, branch=3, steps=TWO))


def test_step_beam_goes_on_from_the_best():
    tree = known(3)
    steps = Steps(until=(), step_tokens=1, verifier=tree.verifier)
    first, second, *_ = laws_search.extends(searched(StepBeam(width=12, branch=12, steps=steps), SMALL))
    assert {ask.prefix.tokens for ask in first} == {()}
    open_ones = [(0,), (1,)]
    assert {ask.prefix.tokens for ask in second} == {max(open_ones, key=lambda tokens: tree.values[tokens])}


# ---- tree


def test_a_node_without_a_verdict_goes_by_its_parent():
    tree = Tree(DEEP)
    (parent,) = grown(tree, tree.root, 0.7)
    (child,) = grown(tree, parent, None)
    assert (child.verdict, child.reward, child.candidate.score) == (None, 0.7, None)
    assert tree.root.reward == 0.5


@pytest.mark.parametrize(
    ("verdict", "reward"),
    [(Verdict(0.25, "probability"), 0.25), (Verdict(7.0, "probability"), 1.0), (Verdict(math.log(0.25), "log_p"), 0.25),
     (Verdict(-1e300, "log_p"), 0.0), (Verdict(0.0), 0.5), (Verdict(math.log(3.0)), 0.75), (Verdict(-1e300), 0.0), (Verdict(1e300), 1.0)],
)  # fmt: skip
def test_reward_is_the_verdict_as_a_probability(verdict, reward):
    tree = Tree(DEEP)
    (node,) = grown(tree, tree.root, None)
    node.verdict = verdict
    assert node.reward == pytest.approx(reward, abs=1e-12)


def test_equal_children_are_one_node_and_are_counted():
    steps = Steps(until=(), step_tokens=1, verifier=Counting("b"))
    outcome = searched(StepBeam(width=30, branch=30, steps=steps), SMALL).result
    assert outcome.diagnostics["num_equal"] > 0 and outcome.diagnostics["num_nodes"] <= 14
    laws_strategy.law_candidates_are_distinct(StepBeam(width=30, branch=30, steps=steps))


def test_what_the_budget_cut_before_its_first_token_is_no_node():
    tree = Tree(DEEP)
    assert tree.add(tree.root, 0, replace(tree.root.prefix, finish="budget")) is None
    assert tree.is_spent and tree.nodes == []
    assert [c.finish for c in tree.outcome(None, {}).candidates] == ["budget"]


def test_frontier_breaks_ties_towards_answers_then_depth_then_age():
    tree = Tree(DEEP)
    first, second, third = grown(tree, tree.root, 0.5, 0.5, 0.5)
    (deep,) = grown(tree, third, 0.5)
    (answer,) = grown(tree, second, 0.5, finish="stop")
    frontier = Frontier(lambda node: (node.reward,))
    for node in (first, deep, second, answer):
        frontier.push(node)
    assert [frontier.pop() for _ in range(4)] == [answer, deep, first, second]
    for node in (first, answer, deep):
        frontier.push(node)
    assert frontier.take(5) == [] and frontier.pop() is answer and frontier.take(1) == [deep]


def test_all_branches_given_up_still_ends_with_a_whole_answer():
    steps = Steps(until=(), step_tokens=1, min_reward=0.9, verifier=Lookup({(0,): 0.1, (1,): 0.2, (2,): 0.3}))
    for make in (StepBeam, Rebase, Dvts, BestFirst, AStar, Mcts, partial(TreeOfThoughts, propose=None)):
        done = searched(make(steps=steps), Prompt(messages=DEEP.messages, max_tokens=30))
        assert done.result.candidates[0].finish in ("stop", "length"), make
        assert max(len(ask.prefix.tokens) for asks in laws_search.extends(done) for ask in asks) <= 1, make


def test_the_last_step_goes_on_to_the_end():
    done = searched(StepBeam(width=4, steps=Steps(until=(), step_tokens=1, max_steps=2)))
    assert [{(ask.max_tokens, ask.until) for ask in asks} for asks in laws_search.extends(done)] == [{(1, ())}, {(None, ())}]
    assert done.result.diagnostics["depth"] == 2


def test_an_answer_that_is_whole_at_once():
    lm = ToyLM("a", ((0.0, 1.0), (0.5, 0.5)))
    for search in (StepBeam, Rebase, Dvts, BestFirst, AStar, Mcts, AbMcts, TreeOfThoughts):
        strategy = search(steps=ONE, propose=None) if search is TreeOfThoughts else search(steps=ONE)
        done = answer_all(strategy.run(DEEP, TorchRng(0)), ToyProcess(lm))
        assert [(c.text, c.finish) for c in done.result.candidates[:1]] == [("", "stop")] and {c.text for c in done.result.candidates} == {""}


def test_votes_choose_by_weight_and_say_their_share():
    tree = Tree(Prompt(messages=DEEP.messages, max_tokens=9))
    grown(tree, tree.root, 0.5, 0.4, text="x", finish="stop")
    grown(tree, tree.root, 0.8, text="y", finish="stop")
    assert tree.outcome(None, {}).candidates[0].text == "y" and tree.outcome(None, {}).confidence is None
    voted = tree.outcome(by_verdict, {})
    assert voted.candidates[0].text == "x" and voted.candidates[0].score == 0.5 and voted.confidence == pytest.approx(0.9 / 1.7)
    assert tree.outcome(one_each, {}).confidence == pytest.approx(2 / 3)
    assert len(voted.candidates) == 3


def greedy_end(tokens):
    prefix = Prefix(SMALL)
    for token in tokens:
        prefix = LM.grown(prefix, token)
    while not prefix.is_final:
        prefix = LM.grown(prefix, max(range(3), key=LM.log_p(prefix).__getitem__))
    return prefix.tokens


def test_lookahead_judges_what_greedy_steps_lead_to():
    went = set()
    for seed in range(6):
        tree = known(seed)
        steps = Steps(until=(), step_tokens=1, verifier=Lookup({a: tree.values[a] for a in tree.answers}), lookahead=9, sampling=Sampling())
        turns = laws_search.extends(searched(StepBeam(width=40, branch=40, steps=steps), SMALL))
        sampled = [asks for asks in turns if asks[0].sampling.temperature > 0]
        best = max(((0,), (1,)), key=lambda tokens: tree.values[greedy_end(tokens)])
        assert {ask.prefix.tokens for ask in sampled[1]} == {best}
        went.add(best)
    assert went == {(0,), (1,)}


# ---- A*


def test_costs_of_a_wavering_path():
    tree = Tree(DEEP)
    node = tree.root
    for value in (0.5, 0.8, 0.6, 0.9):
        (node,) = grown(tree, node, value)
    assert -AStar(cost=drop).promise(node)[0] == pytest.approx(2 * (0.5 + 0.2) - 0.6)  # 2U - D
    assert -AStar(cost=progress).promise(node)[0] == pytest.approx(0.5 + 0.2)  # U


def test_progress_never_falls_along_a_path():
    draw = random.Random(1)
    for _ in range(50):
        tree = Tree(DEEP)
        node, astar, last = tree.root, AStar(cost=progress), 0.0
        for value in [draw.random() for _ in range(8)]:
            (node,) = grown(tree, node, value)
            assert -astar.promise(node)[0] >= last - 1e-12
            last = -astar.promise(node)[0]


def test_several_expansions_in_a_turn_and_no_more_than_allowed():
    steps = Steps(until=(), step_tokens=1, verifier=Abstaining())
    done = searched(BestFirst(branch=2, parallel=3, max_expansions=5, num_answers=50, steps=steps), key=3)
    assert done.result.diagnostics["num_expanded"] <= 5
    assert max(len({ask.prefix.tokens for ask in asks}) for asks in laws_search.extends(done)) > 1


# ---- MCTS


def test_ancestors_know_every_visit():
    tree, visits = Tree(DEEP), defaultdict(Visits)
    a, b = grown(tree, tree.root, 0.2, 0.6)
    (c,) = grown(tree, b, 0.9)
    for node in (a, b, c):
        learn(node, node.reward, visits)
    seen = {node: (visits[node].num, pytest.approx(visits[node].mean)) for node in (tree.root, a, b, c)}
    assert seen == {tree.root: (3, 1.7 / 3), a: (1, 0.2), b: (2, 0.75), c: (1, 0.9)}


def test_curiosities():
    assert puct(0.25, 3, 16) == 0.25 * 4 / 4
    assert uct(0.25, 4, 16) == pytest.approx(math.sqrt(math.log(16) / 4)) and uct(0.9, 0, 0) == 0.0


@pytest.mark.parametrize("curiosity", (puct, uct))
def test_selection_by_hand(curiosity):
    tree, visits = Tree(DEEP), defaultdict(Visits)
    good, bad = grown(tree, tree.root, 0.9, 0.1)
    tree.root.num_asked = 2
    for node in (good, bad):
        learn(node, node.reward, visits)
    assert Mcts(exploration=0.0, branch=2, curiosity=curiosity, steps=TWO).select(tree.root, visits, 1) == [good]
    assert Mcts(exploration=0.0, branch=2, curiosity=curiosity, steps=TWO).select(tree.root, visits, 3) == [good, bad], "different leaves, then none"
    for _ in range(100):
        learn(good, 0.9, visits)
    assert Mcts(exploration=100.0, branch=2, curiosity=curiosity, steps=TWO).select(tree.root, visits, 1) == [bad]
    assert (visits[tree.root].num, visits[good].num) == (102, 101), "selecting is not visiting"


def test_rollouts_are_answers_but_no_steps():
    steps = Steps(until=(), step_tokens=1, verifier=Counting("b"))
    done = searched(Mcts(num=4, branch=2, is_rolled_out=True, steps=steps))
    plain = searched(Mcts(num=4, branch=2, steps=steps))
    assert done.result.diagnostics["num_whole"] > plain.result.diagnostics["num_whole"]
    assert any(ask.max_tokens is None for asks in laws_search.extends(done) for ask in asks)


# ---- AB-MCTS


def test_gaussian_posterior_is_the_closed_form():
    assert gaussian_posterior([]) == (0.0, 1.0, 1.0, 0.1)
    rewards = [0.2, 0.9, 0.4]
    mean, kappa, nu, tau2 = 0.0, 1.0, 1.0, 0.1
    for x in rewards:  # one observation at a time
        tau2 = (nu * tau2 + kappa * (x - mean) ** 2 / (kappa + 1)) / (nu + 1)
        mean, kappa, nu = (kappa * mean + x) / (kappa + 1), kappa + 1, nu + 1
    assert gaussian_posterior(rewards) == pytest.approx((mean, kappa, nu, tau2), abs=1e-12)


def test_gaussian_posterior_against_integration():
    rewards = [0.2, 0.9, 0.4]
    mu = torch.linspace(-6, 6, 2401, dtype=torch.float64)[:, None]
    variance = torch.logspace(-3, 2, 2001, dtype=torch.float64)[None]
    log_p = -1.5 * variance.log() - 0.05 / variance - 0.5 * variance.log() - mu**2 / (2 * variance) + variance.log()  # prior, times d var
    for x in rewards:
        log_p = log_p - 0.5 * variance.log() - (x - mu) ** 2 / (2 * variance)
    mass = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape).sum(1)
    mean, kappa, nu, tau2 = gaussian_posterior(rewards)
    assert float((mass * mu[:, 0]).sum()) == pytest.approx(mean, abs=1e-4)
    assert float((mass * (mu[:, 0] - mean) ** 2).sum()) == pytest.approx(nu / (nu - 2) * tau2 / kappa, rel=1e-2)


def test_draws_have_the_posteriors_moments():
    draw, rewards = random.Random(0), [0.2, 0.9, 0.4, 0.6, 0.6]
    mean, kappa, nu, tau2 = gaussian_posterior(rewards)
    drawn = torch.tensor([ab_mcts.gaussian_mean(rewards, draw) for _ in range(20_000)], dtype=torch.float64)
    deviation = math.sqrt(nu / (nu - 2) * tau2 / kappa)
    assert abs(float(drawn.mean()) - mean) < 5 * deviation / math.sqrt(20_000)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.05)


def test_beta_posterior_is_the_closed_form():
    assert beta_posterior([]) == (0.5, 0.5)
    assert beta_posterior([1.0, 0.25, 0.0]) == (1.75, 2.25)


def test_mixed_model_is_the_joint_gaussian():
    groups, between, within = [[0.2, 0.5, 0.1], [0.9], [0.7, 0.8]], 0.17, 0.26
    log_evidence, mean, precision = shared_mean(groups, between, within)
    home = torch.tensor([j for j, group in enumerate(groups) for _ in group])
    y = torch.tensor([x for group in groups for x in group], dtype=torch.float64)
    cov = 0.04 * torch.ones(6, 6, dtype=torch.float64) + between**2 * (home[:, None] == home[None]).double() + within**2 * torch.eye(6).double()
    joint = torch.distributions.MultivariateNormal(torch.full((6,), 0.5, dtype=torch.float64), cov)
    assert log_evidence == pytest.approx(float(joint.log_prob(y)), abs=1e-9)
    gain = torch.linalg.solve(cov, torch.full((6,), 0.04, dtype=torch.float64))
    assert mean == pytest.approx(0.5 + float(gain @ (y - 0.5)), abs=1e-9)
    assert 1 / precision == pytest.approx(0.04 - float(gain.sum()) * 0.04, abs=1e-9)


@pytest.mark.parametrize("choose", (gaussian, ab_mcts.beta, mixed))
def test_goes_where_the_rewards_are(choose):
    tree = Tree(DEEP)
    good, bad = grown(tree, tree.root, 0.9, 0.1)
    deep = Arms(new=[0.1] * 20, below={good: [0.9] * 20, bad: [0.1] * 20})
    finished = grown(tree, tree.root, *[0.9] * 8, finish="stop")
    wide = Arms(new=[0.9] * 20, below={good: [0.2] * 20, bad: [0.1] * 20, **{node: [0.9] for node in finished}})
    chosen = [[choose(arms, [good, bad], random.Random(i)) for i in range(200)] for arms in (deep, wide)]
    assert chosen[0].count(good) > 150 and chosen[1].count(None) > 150


def test_what_a_drawn_child_teaches():
    tree, arms = Tree(DEEP), defaultdict(Arms)
    (a,) = grown(tree, tree.root, 0.5)
    (b,) = grown(tree, a, 0.8)
    for node in (a, b, b):
        ab_mcts.learn(node, arms)
    assert arms[tree.root] == Arms(new=[0.5], below={a: [0.5, 0.8, 0.0]})
    assert arms[a] == Arms(new=[0.8, 0.0], below={b: [0.8]}), "a copy adds nothing new"


# ---- tree of thoughts

LINED = ToyLM("ab\n", ((0.45, 0.4, 0.1, 0.05), (0.3, 0.3, 0.3, 0.1), (0.3, 0.3, 0.3, 0.1), (0.4, 0.4, 0.1, 0.1)))
PROPOSING = TreeOfThoughts(breadth=2, num_thoughts=3, propose="{text}ab{num}", steps=Steps(until=("\n",), max_steps=3, verifier=Counting("b")))


def played_lines(strategy, key, prompt=DEEP):
    return answer_all(strategy.run(prompt, TorchRng(key)), ToyProcess(LINED))


def test_proposed_thoughts_are_true_prefixes():
    num_forced = 0
    for key in range(12):
        prompt = Prompt(messages=(("raw", "q"),), max_tokens=40)
        done = played_lines(PROPOSING, key, prompt)
        forced = [(ask, answer) for turn, told in zip(done.turns, done.answers) for ask, answer in zip(turn.asks, told)
                  if isinstance(ask, Extend) and ask.prefix.prompt.form]  # fmt: skip
        num_forced += len(forced)
        for ask, answer in forced:
            assert answer.prefix.text == ask.prefix.prompt.form.options[0]
        for c in (*done.result.candidates, *(c for turn in done.turns for c in turn.best)):
            laws_strategy.require_true_to_model(c, LINED, prompt)
        assert done.result.candidates[0].finish in ("stop", "length")
    assert num_forced > 20


def test_proposals_are_different_lines_that_go_on():
    tree = Tree(DEEP)
    reply = Prefix(DEEP, text=" ab\n\nab\nb \na\nbb", finish="stop")
    assert PROPOSING.lines(tree.root, reply) == ["ab\n", "b\n", "a\n"]
    assert PROPOSING.lines(tree.root, replace(reply, finish="budget")) == []
    asked = TreeOfThoughts().proposing(Prompt(messages=(("user", "What is {x}?"),)), tree.root)
    assert asked.messages[0][1].startswith("What is {x}?") and "5 different" in asked.messages[0][1]


def test_without_proposals_thoughts_are_sampled():
    silent = TreeOfThoughts(breadth=2, num_thoughts=2, propose="a", steps=Steps(until=("a",), max_steps=3))
    done = answer_all(silent.run(DEEP, TorchRng(0)), ToyProcess(ToyLM("a", ((0.0, 1.0), (0.5, 0.5)))))
    assert done.result.candidates[0].finish == "stop"


def test_proposing_keeps_the_laws_that_need_no_newline():
    laws = (
        laws_strategy.law_ends_when_spent,
        laws_strategy.law_order_is_nothing,
        laws_strategy.law_asks_are_legal,
        laws_strategy.law_seeds_are_apart,
    )
    proposing = replace(PROPOSING, propose=PROPOSE, steps=Steps(until=("a",), max_steps=3, verifier=Counting("b")))
    for law in laws:
        law(proposing)


def test_dfs_goes_deep_and_comes_back():
    steps = Steps(until=(), step_tokens=1, verifier=Abstaining(), sampling=Sampling())
    search = TreeOfThoughts(breadth=1, num_thoughts=2, order=dfs, propose=None, num_answers=99, max_expansions=12, steps=steps)
    depths = [[len(asks[0].prefix.tokens) for asks in laws_search.extends(searched(search, key=key))] for key in range(6)]
    assert any(b < a for found in depths for a, b in itertools.pairwise(found)), "it never comes back"
    assert all(found[:2] == [0, 1] and max(found) >= 2 for found in depths if len(found) > 2), "it does not go straight down"


# ---- under the driver

SEARCHES = (
    StepBeam(width=4, branch=2, steps=TWO), Dvts(width=4, branch=2, steps=TWO), Rebase(width=5, steps=TWO), BestFirst(steps=TWO), AStar(steps=TWO),
    Mcts(num=6, branch=2, steps=TWO), AbMcts(num=10, choose=mixed, steps=TWO), TreeOfThoughts(breadth=2, num_thoughts=2, propose=None, steps=TWO),
)  # fmt: skip


def driven(budget, max_jobs):
    jobs = [
        Job(id=f"{i}-{j}", prompt=prompt, recipe=Recipe(label=str(i), strategy=strategy, budget=budget), seed=j)
        for i, strategy in enumerate(SEARCHES)
        for j, prompt in enumerate((DEEP, SMALL, DEEP, SMALL))
    ]
    return [result for _, result in Driver(ToyProcess(LM), max_jobs=max_jobs).run(jobs)]


@pytest.mark.parametrize("tokens", (20, 60, None))
def test_same_trees_at_concurrency_1_and_32(tokens):
    one, many = (driven(Budget(tokens=tokens), max_jobs) for max_jobs in (1, 32))
    assert [(r.candidates, r.diagnostics, r.cost.tokens) for r in one] == [(r.candidates, r.diagnostics, r.cost.tokens) for r in many]


def test_more_tokens_never_give_a_worse_verdict():
    runs = [driven(Budget(tokens=tokens), 32) for tokens in (*range(5, 60, 9), 200)]
    for results in zip(*runs, strict=True):
        firsts = [laws_search.standing_of(r.candidates[0]) for r in results]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Steps(until=()),
        lambda: Steps(max_steps=0),
        lambda: Steps(min_reward=2.0),
        lambda: Steps(lookahead=-1),
        lambda: StepBeam(width=0),
        lambda: Dvts(width=5, branch=2),
        lambda: Rebase(temperature=0.0),
        lambda: Rebase(temperature=math.nan),
        lambda: BestFirst(branch=0),
        lambda: AStar(parallel=0),
        lambda: Mcts(exploration=-1.0),
        lambda: AbMcts(num=0),
        lambda: TreeOfThoughts(breadth=0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField):
        make()
