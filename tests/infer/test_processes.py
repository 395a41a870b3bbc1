"""One algebra, several processes: the same strategies over words, a hidden Markov model, a Kalman filter's model and a denoiser.

Words and the hidden Markov model are enumerated. Over numbers the guided model is exact (its evidence has no variance), and
the rest is held against Kalman and against the mixture's own integral within four standard errors, over fixed seeds.
"""

import math
from dataclasses import replace

import pytest
import torch

from infer.chains import moving, trails_of
from ponder.core.asks import Prompt, Sampling
from ponder.core.rng import TorchRng
from ponder.infer.best_of_n import BestOfN
from ponder.infer.conditional import Sweep, drawn_trail
from ponder.infer.entropic_filter import EntropicFilter
from ponder.infer.ops import ExtendStep, JudgedStep, log_prob
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.path_search import PathSearch
from ponder.infer.picks import drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.infer.zero_order import ZeroOrder
from ponder.testing import laws_chain, laws_strategy
from ponder.testing.denoiser import Denoiser, Nearness
from ponder.testing.exact import difference, normalised
from ponder.testing.gaussian import LinearGaussian
from ponder.testing.hmm import SMALL
from ponder.testing.laws_strategy import LM, LONG, played
from ponder.testing.numbers import NumberProcess, numbers_of
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess
from ponder.testing.verifiers import Counting, Likelihood

PLAIN = Sampling()
STATES = Prompt(messages=(("raw", "q"),), max_tokens=3)
NUMBERS = Prompt(messages=(("raw", "q"),), max_tokens=200)
SERIES = LinearGaussian((0.4, -0.3, 1.1, 0.9, 0.2))
MIXTURE = Denoiser(means=((1.0, 1.0), (-1.0, 0.5), (0.0, -1.0)), shares=(0.5, 0.3, 0.2), deviation=0.4, num_steps=4)
DEEP = Denoiser(
    means=((1.0,) * 4, (-1.0, 0.5, 0.5, 0.5), (0.0, -1.0, -1.0, -1.0)), shares=(0.5, 0.3, 0.2), deviation=0.4, num_steps=4, is_deterministic=True
)
FAR = Nearness(DEEP, (-0.6, 0.9, 0.9, 0.9), width=1.0)


def filtering(verifier, **changes) -> ParticleFilter:
    """One object for every process: a step is a line, and where there are no lines one token."""
    settings = {"num": 2, "resampler": systematic, "until": ("\n",), "step_tokens": 1, "potential": log_prob, "sampling": PLAIN, "pick": drawn}
    return ParticleFilter(verifier=verifier, **settings | changes)


def run_on(model, strategy, key=0, prompt=NUMBERS):
    return answer_all(strategy.run(prompt, TorchRng(key)), NumberProcess(model))


# ---- a hidden Markov model, by enumeration


@pytest.mark.parametrize("resampler", (systematic, multinomial))
def test_filters_have_the_evidence_of_the_hidden_markov_model(resampler):
    entropic = EntropicFilter(
        num=2, resampler=resampler, verifier=Likelihood(SMALL), potential=log_prob, is_looking=resampler is systematic, step_tokens=1, until=(),
        sampling=PLAIN, ess_below=0.9, pick=drawn,
    )  # fmt: skip
    for strategy in (filtering(Likelihood(SMALL), resampler=resampler, ess_below=0.9), entropic):
        found = laws_strategy.law_weights_are_proper(strategy, lambda p: SMALL.log_likelihood(p.tokens), PLAIN, lm=SMALL.lm(), prompt=STATES)
        assert found.normaliser == pytest.approx(SMALL.evidence(), abs=1e-12)
        assert difference(normalised(found.measure), normalised(SMALL.posterior())) <= 1e-12


def test_gibbs_keeps_the_posterior_of_the_hidden_markov_model():
    step = JudgedStep(extend=ExtendStep(max_tokens=1), verifier=Likelihood(SMALL), potential=log_prob, is_ratio=True)
    sweep = Sweep(num=2, step=step)
    target = trails_of(sweep, STATES, SMALL.lm())
    assert difference({x.prefix.tokens: mass for x, mass in target.items()}, SMALL.posterior()) <= 1e-12
    laws_chain.law_chain_keeps(target, moving(sweep, STATES, SMALL.lm()), is_reversible=True)


# ---- a linear-Gaussian model, against Kalman


@pytest.mark.parametrize("num", (1, 3))
def test_a_guided_filter_has_kalmans_evidence_whatever_it_draws(num):
    guided = replace(SERIES, is_guided=True)
    for key in range(5):
        told = run_on(guided, filtering(Likelihood(guided), num=num, is_corrected=True), key).result.diagnostics
        assert told["log_evidence"] == pytest.approx(SERIES.kalman()[0], abs=1e-10)


FILTERS = {
    "particle filter": filtering(Likelihood(SERIES), num=12),
    "always resampled": filtering(Likelihood(SERIES), num=12, resampler=multinomial, ess_below=None),
    "hotter proposal": filtering(Likelihood(SERIES), num=16, sampling=Sampling(temperature=1.5), is_corrected=True),
    "entropic": EntropicFilter(
        num=12, resampler=systematic, verifier=Likelihood(SERIES), potential=log_prob, anneal="entropy", step_tokens=1, until=(), sampling=PLAIN,
        ess_below=0.9, pick=drawn,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_filters_have_kalmans_evidence_and_mean(name):
    log_evidence, means = SERIES.kalman()
    ratios, sums = [], []
    for key in range(40):
        outcome = run_on(SERIES, FILTERS[name], key).result
        ratio = math.exp(outcome.diagnostics["log_evidence"] - log_evidence)
        last = [numbers_of(c.tokens)[-1] for c in outcome.candidates]
        ratios.append(ratio)
        sums.append(ratio * (sum(w * x for w, x in zip(outcome.diagnostics["weights"], last)) - means[-1]))
    for values, wanted in ((ratios, 1.0), (sums, 0.0)):
        assert_mean(values, wanted)


def assert_mean(values, wanted):
    found = torch.tensor(values, dtype=torch.float64)
    assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / math.sqrt(len(values))


def test_gibbs_and_tempering_have_kalmans_mean():
    _, smoothed = SERIES.joint()
    gibbs = ParticleGibbs(num=4, num_sweeps=16, burn_in=2, verifier=Likelihood(SERIES), potential=log_prob, step_tokens=1, sampling=PLAIN)
    tempering = ParallelTempering(
        num=3, num_chains=2, num_rounds=12, burn_in=2, verifier=Likelihood(SERIES), potential=log_prob, step_tokens=1, sampling=PLAIN
    )  # fmt: skip
    for strategy in (gibbs, tempering):
        found = []
        for key in range(6):
            outcome = run_on(SERIES, strategy, key).result
            found.append(sum(w * numbers_of(c.tokens)[0] for w, c in zip(outcome.diagnostics["weights"], outcome.candidates)))
        assert_mean(found, float(smoothed[0]))


def test_sweeps_over_numbers_pass_the_rank_test():
    """Exact draws from the posterior come from the guided model."""
    step = JudgedStep(extend=ExtendStep(max_tokens=1), verifier=Likelihood(SERIES), potential=log_prob, is_ratio=True)
    one, several = Sweep(num=1, step=step), Sweep(num=4, step=step)
    guided = replace(SERIES, is_guided=True)
    draw = lambda rng: answer_all(one.run(NUMBERS, None, rng), NumberProcess(guided)).result.state.items[0]
    move = lambda trail, rng: drawn_trail(answer_all(several.run(NUMBERS, trail, rng), NumberProcess(SERIES)).result, rng)
    laws_chain.law_ranks_are_uniform(draw, move, lambda trail: numbers_of(trail.prefix.tokens)[1], length=4, num=24)


# ---- a denoiser, against the integral of its mixture


@pytest.mark.parametrize("ess_below", (0.5, None))
def test_steering_a_denoiser_has_the_evidence_of_the_tilted_mixture(ess_below):
    verifier = Nearness(MIXTURE, (-0.5, 1.0), width=0.8)
    steering = filtering(verifier, num=8, ess_below=ess_below, step_tokens=None)
    found = [run_on(MIXTURE, steering, key).result.diagnostics["log_evidence"] for key in range(40)]
    assert_mean([math.exp(x - verifier.log_evidence()) for x in found], 1.0)


def searches(verifier, share=0.5) -> dict:
    return {
        "random": BestOfN(num=32, verifier=verifier, sampling=PLAIN),
        "zero order": ZeroOrder(num_starts=8, num_rounds=6, num_neighbours=4, share=share, verifier=verifier, sampling=PLAIN),
    }


def test_near_noise_beats_random_noise_at_equal_cost():
    """The verifier's score, paired over 20 questions: better by more than four standard errors, never by luck of one seed."""
    found = {name: [run_on(DEEP, s, key) for key in range(20)] for name, s in searches(FAR).items()}
    assert len({done.cost.generated_tokens for runs in found.values() for done in runs}) == 1
    best = {name: [done.result.candidates[0].score for done in runs] for name, runs in found.items()}
    gains = torch.tensor(best["zero order"], dtype=torch.float64) - torch.tensor(best["random"], dtype=torch.float64)
    assert float(gains.mean()) > 4 * float(gains.std()) / math.sqrt(20)


def test_paths_beat_random_noise_at_equal_cost():
    """On a denoiser that draws on the way, choosing at every step."""
    soft = replace(DEEP, is_deterministic=False)
    verifier = replace(FAR, denoiser=soft)
    paths = PathSearch(verifier=verifier, num=4, num_children=4, back=0, forth=1, until=("\n",), sampling=PLAIN)
    gains = []
    for key in range(20):
        done = run_on(soft, paths, key)
        num = math.ceil(done.cost.generated_tokens / (soft.size * soft.num_states))
        gains.append(
            done.result.candidates[0].score - run_on(soft, BestOfN(num=num, verifier=verifier, sampling=PLAIN), key).result.candidates[0].score
        )
    found = torch.tensor(gains, dtype=torch.float64)
    assert float(found.mean()) > 3 * float(found.std()) / math.sqrt(20)


# ---- laws of search, on every process


PROCESSES = {
    "words": (lambda: ToyProcess(LM), LONG, Counting("b")),
    "series": (lambda: NumberProcess(SERIES), NUMBERS, Likelihood(SERIES)),
    "denoiser": (lambda: NumberProcess(DEEP), NUMBERS, FAR),
}
GROWING = {
    "best of n": lambda verifier, num: BestOfN(num=2 * num, verifier=verifier, sampling=PLAIN),
    "zero order": lambda verifier, num: ZeroOrder(num_rounds=num, num_neighbours=2, verifier=verifier, sampling=PLAIN),
    "zero order, more starts": lambda verifier, num: ZeroOrder(num_starts=2 * num, num_rounds=0, verifier=verifier, sampling=PLAIN),
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("search", GROWING)
def test_more_search_never_lowers_the_best_score(search, process):
    make, prompt, verifier = PROCESSES[process]
    laws_strategy.law_more_never_hurts(lambda num: GROWING[search](verifier, num), make, prompt)


def test_a_search_that_drops_its_best_is_caught():
    """Keeps the last round only, as a beam without memory would."""

    class Forgetful(ZeroOrder):
        def run(self, prompt, rng):
            outcome = yield from super().run(prompt, rng)
            last = outcome.candidates[-1:]
            return replace(outcome, candidates=last)

    make, prompt, verifier = PROCESSES["denoiser"]
    with pytest.raises(AssertionError, match="lowered"):
        laws_strategy.law_more_never_hurts(lambda num: Forgetful(num_rounds=num, num_neighbours=2, verifier=verifier, sampling=PLAIN), make, prompt)


@pytest.mark.parametrize("process", PROCESSES)
def test_every_strategy_runs_unchanged(process):
    make, prompt, verifier = PROCESSES[process]
    shape = {"until": ("\n",), "step_tokens": 2, "sampling": PLAIN}
    strategies = (
        Sample(num=3, sampling=PLAIN),
        SelfConsistency(num=3, sampling=PLAIN),
        *searches(verifier).values(),
        PathSearch(verifier=verifier, **shape),
        filtering(verifier, num=3),
        ParticleGibbs(verifier=verifier, potential=log_prob, num_sweeps=2, **shape),
        ParallelTempering(verifier=verifier, potential=log_prob, num_rounds=2, **shape),
        EntropicFilter(num=3, resampler=systematic, verifier=verifier, potential=log_prob, is_looking=True, **shape),
    )
    for strategy in strategies:
        outcome = answer_all(strategy.run(prompt, TorchRng(1)), make()).result
        assert outcome.candidates and all(c.finish in ("stop", "length") and c.tokens for c in outcome.candidates)


def test_paths_forget_nothing_that_is_finished():
    done = played(PathSearch(verifier=Counting("b"), step_tokens=2, sampling=PLAIN))
    scores = [c.score for c in done.result.candidates]
    assert scores == sorted(scores, reverse=True) and done.result.diagnostics["num_finished"] == len(scores)
