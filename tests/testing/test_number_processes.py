"""Number processes: the oracles agree with each other, the process keeps its role's laws, draws have the stated distribution."""

import math
from dataclasses import replace

import pytest

from ponder.core.asks import Expand, Extend, Prefix, Prompt, Sampling, Score
from ponder.core.errors import BadField
from ponder.testing import laws_process
from ponder.testing.denoiser import Denoiser, Nearness
from ponder.testing.gaussian import LinearGaussian
from ponder.testing.numbers import Bells, NumberProcess, numbers_of, states_of, token_of
from ponder.testing.run import answer_turn

SERIES = LinearGaussian((0.4, -0.3, 1.1, 0.9, 0.2))
TWO = Denoiser(means=((1.0, -0.5), (-0.8, 0.6), (0.2, 1.2)), shares=(0.5, 0.3, 0.2), num_steps=5)
PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=200)
MODELS = {"series": SERIES, "guided series": replace(SERIES, is_guided=True), "denoiser": TWO, "sure denoiser": replace(TWO, is_deterministic=True)}
NOT_OF_NUMBERS = {  # law -> why it says nothing about a process over numbers
    "law_expand": "there is no list of next numbers",
    "law_scores": "options are words",
    "law_options_share_their_prefix": "options are words",
    "law_probabilities": "densities may exceed 1, and a guided proposal is not the model",
}


@pytest.mark.parametrize("law", [x for x in laws_process.LAWS if x.__name__ not in NOT_OF_NUMBERS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_process_law(name, law):
    law(lambda: NumberProcess(MODELS[name]), PROMPT, 0.0)


@pytest.mark.parametrize("law", [x for x in laws_process.LAWS if x.__name__ in NOT_OF_NUMBERS], ids=lambda f: f.__name__)
def test_exceptions_are_needed(law):
    with pytest.raises((AssertionError, BadField)):
        for model in (replace(SERIES, is_guided=True, blur=0.01), TWO):
            law(lambda model=model: NumberProcess(model), PROMPT, 0.0)


def extended(model, num, **fields):
    asks = [Extend(prefix=Prefix(PROMPT), seed=s, **fields) for s in range(num)]
    return [a.prefix for a in answer_turn(asks, NumberProcess(model))]


def test_a_number_is_its_bits():
    for x in (0.0, -1.5, 1e-300, math.pi):
        assert numbers_of((token_of(x),)) == (x,)
    (prefix,) = extended(TWO, 1)
    assert prefix.finish == "stop" and prefix.text.count("\n") == TWO.num_steps and len(prefix.tokens) == 12
    assert [float(x) for x in prefix.text.split("\n")[-1].split()] == pytest.approx(states_of(TWO, prefix.tokens)[-1], rel=1e-5)


def test_bells_are_inverted():
    bells = Bells(((0.5, -1.0, 0.3), (0.3, 2.0, 0.1), (0.2, 2.1, 1.5)))
    for probe in (1e-9, 0.1, 0.5, 0.77, 1 - 1e-9):
        assert bells.below(bells.at(probe)) == pytest.approx(probe, abs=1e-12)
    step = 1e-5
    slope = (bells.below(0.4 + step) - bells.below(0.4 - step)) / (2 * step)
    assert math.exp(bells.log_p(0.4)) == pytest.approx(slope, rel=1e-6) and math.isfinite(bells.log_p(500.0))
    assert bells.tempered(0).at(0.9) == -1.0 and bells.tempered(4.0).parts[0][2] == 0.6


def test_two_opinions_about_the_evidence():
    log_evidence, mean = SERIES.joint()
    assert SERIES.kalman()[0] == pytest.approx(log_evidence, abs=1e-12)
    assert SERIES.kalman()[1][-1] == pytest.approx(float(mean[-1]), abs=1e-12)


def test_a_guided_path_has_the_posterior_density():
    """log p - log q + log-likelihood is the evidence, for every path."""
    guided = replace(SERIES, is_guided=True)
    for prefix in extended(guided, 5):
        assert prefix.log_p - prefix.log_q + SERIES.log_likelihood(prefix.tokens) == pytest.approx(SERIES.kalman()[0], abs=1e-10)


def test_the_score_is_the_gradient():
    step = 1e-5
    for level in (1, 3, 5):
        x = (0.3, -0.4)
        for i, found in enumerate(TWO.score(x, level)):
            up, down = ([xi + sign * step * (i == j) for j, xi in enumerate(x)] for sign in (1, -1))
            assert found == pytest.approx((TWO.log_p(tuple(up), level) - TWO.log_p(tuple(down), level)) / (2 * step), abs=1e-6)


def test_density_of_a_path_is_that_of_its_marginals():
    """Bayes: p(x_t) p(x_s | x_t) integrates to p(x_s); here along one coordinate on a grid, for a denoiser of one number."""
    one = Denoiser(means=((1.0,), (-1.0,)), shares=(0.4, 0.6), num_steps=3)
    grid = [-6 + 0.02 * i for i in range(601)]
    for level, x in ((1, 0.7), (0, -0.9), (0, 0.1)):
        before = one.num_steps - level - 1
        mass = math.fsum(0.02 * math.exp(one.log_p((y,), level + 1) + one.law((*([0.0] * before), y)).log_p(x)) for y in grid)
        assert mass == pytest.approx(math.exp(one.log_p((x,), level)), rel=1e-6)


@pytest.mark.parametrize("name", ("denoiser", "sure denoiser"))
def test_answers_are_data(name):
    """Share of each part and spread about it; DDIM in many steps too (in 12 its spread is a quarter too small)."""
    model = replace(MODELS[name], num_steps=5 if name == "denoiser" else 40)
    ends = [states_of(model, p.tokens)[-1] for p in extended(model, 250)]
    near = [min(range(3), key=lambda k, x=x: math.dist(x, model.means[k])) for x in ends]
    for k, share in enumerate(model.shares):
        assert near.count(k) / 250 == pytest.approx(share, abs=4 * math.sqrt(share / 250))
    spread = sum(math.dist(x, model.means[k]) ** 2 for x, k in zip(ends, near)) / 500
    assert spread == pytest.approx(model.deviation**2, rel=0.25)


def test_evidence_of_a_reward_by_the_data():
    judge = Nearness(TWO, (0.9, 0.9), width=0.7)
    ends = [states_of(TWO, p.tokens)[-1] for p in extended(TWO, 400)]
    values = [math.exp(judge.reward(x)) for x in ends]
    mean = sum(values) / 400
    error = math.sqrt(sum((v - mean) ** 2 for v in values)) / 400
    assert abs(mean - math.exp(judge.log_evidence())) < 4 * error


def test_temperature_and_refusals():
    cold = extended(TWO, 3, sampling=Sampling(temperature=0.0))
    assert len({p.tokens for p in cold}) == 1 and {p.log_q for p in cold} == {0.0}
    assert len({p.tokens for p in extended(TWO, 3)}) == 3
    assert all(p.log_p == p.log_q for p in extended(TWO, 2)) and all(p.log_p != p.log_q for p in extended(TWO, 2, sampling=Sampling(temperature=2.0)))
    process = NumberProcess(SERIES)
    for ask in (
        Expand(prefix=Prefix(PROMPT), num=2),
        Score(prefix=Prefix(PROMPT), options=("1",)),
        Extend(prefix=Prefix(PROMPT), seed=0, sampling=Sampling(top_p=0.9)),
        Extend(prefix=Prefix(PROMPT), seed=0, logprobs=1),
    ):
        with pytest.raises(BadField, match="over numbers"):
            process.add(ask)
