"""The toy process keeps the laws of a process, and its enumeration is what its draws follow."""

import math
from collections import Counter

import pytest

from ponder.core.asks import Expand, Extend, Judge, Prefix, Prompt, Sampling, Score
from ponder.core.errors import BadField
from ponder.testing.exact import difference, expected_distribution
from ponder.testing.laws_process import LAWS
from ponder.testing.run import answer_all, answer_turn
from ponder.testing.toy import ToyLM, ToyProcess, toy_lm, transformed

PROMPTS = {
    "plain": Prompt(messages=(("raw", "ab"),), max_tokens=8),
    "with a stop": Prompt(messages=(("raw", "x"),), max_tokens=10, stop=("cb",)),
    "put in its mouth": Prompt(messages=(("system", "a"), ("user", "")), prefill="c", max_tokens=6),
}
LM = toy_lm("abc", seed=3)
WARM = ToyProcess(LM)
SMALL, SHORT = toy_lm("ab", seed=1), Prompt(messages=(("raw", "q"),), max_tokens=3)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("make", (lambda: ToyProcess(LM), lambda: WARM), ids=("fresh", "warm"))
def test_law(name, law, make):
    law(make, PROMPTS[name], 0.0)


@pytest.mark.parametrize("sampling", (Sampling(), Sampling(temperature=0.5), Sampling(top_k=2), Sampling(top_p=0.6), Sampling(min_p=0.7)))
def test_draws_have_the_distribution_of_the_completions(sampling):
    ask = Extend(prefix=Prefix(SHORT), seed=5, sampling=sampling)
    found = expected_distribution(lambda rng: answer_turn([ask], ToyProcess(SMALL, rng))[0].prefix.tokens)
    wanted = {p.tokens: math.exp(p.log_q) for p in SMALL.completions(SHORT, sampling)}
    assert difference(found.measure, wanted) < 1e-12 and sum(wanted.values()) == pytest.approx(1.0, abs=1e-12)


def test_keyed_draws_follow_the_model():
    process, num = ToyProcess(SMALL), 4000
    told = answer_turn([Extend(prefix=Prefix(SHORT), seed=s) for s in range(num)], process)
    seen = Counter(t.prefix.tokens for t in told)
    wanted = {p.tokens: math.exp(p.log_p) for p in SMALL.completions(SHORT)}
    chi2 = sum((seen[x] - num * p) ** 2 / (num * p) for x, p in wanted.items())
    assert chi2 < len(wanted) + 6 * math.sqrt(2 * len(wanted))


def test_one_seed_is_one_draw_and_two_seeds_are_two():
    def both(seeds):
        asks = [Extend(prefix=Prefix(SHORT), seed=s, max_tokens=1) for s in seeds]
        return expected_distribution(lambda rng: tuple(a.prefix.tokens for a in answer_turn(asks, ToyProcess(SMALL, rng)))).measure

    alone = [math.exp(x) for x in SMALL.log_p(Prefix(SHORT))]
    assert difference(both((1, 1)), {((v,), (v,)): p for v, p in enumerate(alone)}) < 1e-12
    assert difference(both((1, 2)), {((v,), (w,)): p * q for v, p in enumerate(alone) for w, q in enumerate(alone)}) < 1e-12


def test_log_p_is_the_models_own_whatever_the_sampling():
    for prefix in LM.completions(SHORT, Sampling(temperature=0.3)):
        again = Prefix(prefix.prompt)
        for token in prefix.tokens:
            again = LM.grown(again, token)
        assert prefix.log_p == again.log_p and prefix.text == again.text


def test_transforms_in_their_order():
    p = tuple(math.log(x) for x in (0.5, 0.3, 0.15, 0.05))
    shares = lambda sampling: [round(math.exp(x), 6) for x in transformed(p, sampling)]
    assert shares(Sampling(temperature=0.0)) == [1, 0, 0, 0]
    assert shares(Sampling(top_k=2)) == [0.625, 0.375, 0, 0]
    assert shares(Sampling(top_p=0.5)) == [1, 0, 0, 0]
    assert shares(Sampling(top_p=0.51)) == [0.625, 0.375, 0, 0]
    assert shares(Sampling(min_p=0.3)) == [round(x / 0.95, 6) for x in (0.5, 0.3, 0.15)] + [0]
    assert shares(Sampling(temperature=0.5, min_p=0.3)) == [round(x / 0.34, 6) for x in (0.25, 0.09)] + [0, 0]


def test_shared_prefixes_are_computed_once():
    process = ToyProcess(LM)
    prompt = PROMPTS["plain"]
    first, second = answer_turn([Extend(prefix=Prefix(prompt), seed=s, max_tokens=1) for s in (0, 1)], process)
    assert (first.cost.prompt_tokens, first.cost.reused_tokens) == (3, 0)
    assert (second.cost.prompt_tokens, second.cost.reused_tokens) == (1, 2)


def test_the_sum_of_the_answers_costs_is_the_process_own_count():
    process = ToyProcess(LM)
    prefix = Prefix(PROMPTS["plain"])
    asks = [Extend(prefix=prefix, seed=1), Expand(prefix=prefix, num=2), Score(prefix=prefix, options=("ab", "c")), Extend(prefix=prefix, seed=2)]
    told = answer_turn(asks, process)
    ticket = process.add(Extend(prefix=prefix, seed=9))
    process.step()
    costs = [a.cost for a in told] + [process.cancel(ticket).cost if ticket in process.progress() else None]
    total = sum(costs[1:], costs[0])
    assert (total.tokens, total.reused_tokens, total.calls) == (process.total.tokens, process.total.reused_tokens, process.total.calls)
    assert total.flops == pytest.approx(process.total.flops)


def test_scores_are_the_tables():
    (told,) = answer_turn([Score(prefix=Prefix(SHORT), options=("ab", "z", ""))], ToyProcess(SMALL))
    rows = [[math.log(p) for p in row] for row in SMALL.table]
    assert told.log_p == (rows[0][0] + rows[1][1], -math.inf, 0.0)


def test_certainty_is_summed_only_when_asked_for():
    asks = [Extend(prefix=Prefix(SHORT), seed=0, certainty=c) for c in (False, True)]
    plain, certain = answer_turn(asks, ToyProcess(SMALL))
    assert plain.prefix.certainty == 0.0 < certain.prefix.certainty and plain.prefix.tokens == certain.prefix.tokens


def test_what_it_does_not_take():
    process = ToyProcess(SMALL)
    with pytest.raises(BadField, match="verifier"):
        process.add(Judge(verifier=None, prompt=SHORT, candidates=()))
    with pytest.raises(BadField, match="final"):
        process.add(Extend(prefix=Prefix(SHORT, finish="stop"), seed=0))
    with pytest.raises(BadField, match="2 rows"):
        ToyLM("a", ((1.0,),))


def test_the_loop_returns_what_a_generator_returns():
    def running():
        told = yield from ()
        return told

    assert answer_all(running(), ToyProcess(SMALL)).result is None
