"""Tables of a compute-optimal strategy: the best of all within the budget, honest on unseen questions, better than none where it can be."""

import itertools
import random
from dataclasses import replace

import pytest

from ponder.core.asks import Sampling
from ponder.core.errors import BadField
from ponder.infer.compute_optimal import ComputeOptimal
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.plan.allocate import Table, Trial, cross_checked, fitted, quantiles
from ponder.testing.laws_simulator import law_spends_where_it_pays
from ponder.testing.simulated_verifier import SimulatedVerifier
from ponder.testing.simulator import Problem, World, play_many, zipf

PLAIN = Sampling(temperature=1.0)
EASE = {True: 0.995, False: 0.3}  # chance that a sample is right, of easy and of hard questions


class Mixed(World):
    """Every other question is easy; wrong answers are many and equally popular, so the right one leads where enough vote."""

    def problem(self, index):
        return Problem(index, (EASE[index % 2 == 0],), zipf(self.num_wrong, 0.0))


class Hard(World):
    def problem(self, index):
        return Problem(index, (EASE[False],), zipf(self.num_wrong, 0.0))


SHAPE = {"depth": (1, 1), "num_wordings": 4, "num_wrong": 7, "popularity": 0.0, "step_tokens": 2}
MIXED, HARD = Mixed(**SHAPE), Hard(**SHAPE)
ARMS = tuple(Sample(num=num, sampling=PLAIN) for num in (4, 12, 20))


def optimal(*arms, **changes):
    return ComputeOptimal(**{"arms": arms, "edges": (0.9,), "sampling": PLAIN} | changes)


def uniform(num):
    return SelfConsistency(num=num, sampling=PLAIN)


def test_compute_goes_where_it_pays():
    law_spends_where_it_pays(optimal(ARMS[2], None), uniform, varied=MIXED, alike=HARD, problems=400)


def test_the_inverted_table_fails():
    with pytest.raises(AssertionError, match="questions that differ"):
        law_spends_where_it_pays(optimal(None, ARMS[2]), uniform, varied=MIXED, alike=HARD, problems=100)


def test_one_table_for_all_gains_nothing():
    with pytest.raises(AssertionError, match="questions that differ"):
        law_spends_where_it_pays(optimal(ARMS[1], ARMS[1]), uniform, varied=MIXED, alike=HARD, problems=100)


def trials(world, num, seed=0):
    """Questions under: stop after the first four, and each of ARMS."""
    runs = [list(play_many(optimal(arm, arm), world, num, seed=seed)) for arm in (None, *ARMS)]
    return [
        Trial(ease=many[0].outcome.diagnostics["ease"], right=tuple(float(r.is_right) for r in many), tokens=tuple(r.tokens for r in many))
        for many in zip(*runs)
    ]  # fmt: skip


def test_a_fitted_table_beats_every_single_arm_on_new_questions():
    known = trials(MIXED, 200)
    random.Random(0).shuffle(known)
    table = fitted(known, 2, tokens=64.0)
    assert table.arms[0] > table.arms[-1] == 0 and table.tokens <= 64
    arms = tuple(None if a == 0 else ARMS[a - 1] for a in table.arms)
    law_spends_where_it_pays(optimal(*arms, edges=table.edges), uniform, varied=replace(MIXED, seed=1), alike=HARD, problems=400)
    right, tokens = cross_checked(known, 2, tokens=64.0)
    assert tokens <= 1.1 * 64 and abs(right - table.right) < 0.06


def worth(table, some):
    picks = [(x.right[table.arm(x.ease)], x.tokens[table.arm(x.ease)]) for x in some]
    return sum(right for right, _ in picks) / len(some), sum(tokens for _, tokens in picks) / len(some)


def test_the_best_of_all_tables_within_the_budget():
    draw = random.Random(0)
    for _ in range(20):
        some = [Trial(ease=draw.random(), right=tuple(draw.random() for _ in range(3)), tokens=(1.0, 2.0, 4.0)) for _ in range(9)]
        table = fitted(some, 3, tokens=2.5)
        every = [worth(replace(table, arms=arms), some) for arms in itertools.product(range(3), repeat=len(table.arms))]
        assert worth(table, some) == pytest.approx((table.right, table.tokens)) and table.tokens <= 2.5 + 1e-9
        assert table.right == pytest.approx(max(right for right, tokens in every if tokens <= 2.5 + 1e-9))


def test_difficulty_by_verdicts_and_the_arm_s_own_answer():
    verifier = SimulatedVerifier(auroc=0.95)
    told = list(play_many(optimal(ARMS[1], None, verifier=verifier, edges=(0.6,), is_pooled=False), MIXED, 60))
    by_kind = [[one.outcome.diagnostics["arm"] for one in told[k::2]] for k in range(2)]
    assert sum(by_kind[0]) > 25 and sum(by_kind[1]) < 12
    assert all(len(one.outcome.candidates) == (4 if one.outcome.diagnostics["arm"] else 12) for one in told)


def test_bins_and_bad_input():
    assert quantiles([0.1, 0.2, 0.3, 0.4], 2) == (0.3,) and quantiles([1.0] * 5, 4) == ()
    table = Table(edges=(0.5, 0.8), arms=(2, 1, 0), right=0.0, tokens=0.0)
    assert [table.arm(x) for x in (0.2, 0.5, 0.79, 0.8)] == [2, 1, 1, 0]
    one = Trial(ease=0.5, right=(1.0,), tokens=(10.0,))
    wrong = (
        lambda: fitted([], 2, 5),
        lambda: fitted([one], 2, 5.0),
        lambda: fitted([one, replace(one, right=(1.0, 0.0))], 2, 50),
        lambda: fitted([replace(one, ease=float("nan"))], 2, 50),
        lambda: fitted([Trial(ease=i, right=(1.0,) * 9, tokens=(1.0,) * 9) for i in range(9)], 9, 5),
        lambda: optimal(None),
        lambda: optimal(None, None, first=0),
        lambda: optimal(None, None, None, edges=(0.9, 0.5)),
    )
    for make in wrong:
        with pytest.raises(BadField):
            make()
