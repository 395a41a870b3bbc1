"""Ops x laws, on a hidden Markov model: every posterior and normaliser by enumeration of all random paths."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from ponder.core.asks import Extend, Prefix, Prompt, Sampling, Turn
from ponder.core.errors import BadField, BadWeight, DeadParticles
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, as_log_weights, uniform_particles
from ponder.core.rng import TorchRng
from ponder.infer.compose import Chain, Repeat, While
from ponder.infer.ops import Advance, Condition, Draw, ExtendStep, Heaviest, Move, Resample, Reweight, Spawn, Thin, Top, mean, start
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.testing import laws_op
from ponder.testing.exact import difference, expected_measure, measure_of, normalised, returned
from ponder.testing.hmm import DEADLY, SMALL, Gibbs, Metropolis, ProposedStep, Step
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess, toy_lm

MIXED = Particles(Batch(("a", "b", "c", "d")), as_log_weights([math.log(0.5), -math.inf, 0.2, -1.0]), log_z=-0.7)
TWO = Particles(Batch(((0,), (1,))), as_log_weights([0.3, -0.9]), log_z=0.4)


def smc(hmm, num, resampler, ess_below, kernel=Step):
    step = Advance(kernel(hmm)) >> Reweight(hmm.log_potential)
    return Spawn(num) >> step >> Repeat(Resample(resampler, ess_below) >> step, len(hmm.emission) - 1)


def running(op, particles=None):
    return lambda rng: returned(op.run(start(()) if particles is None else particles, rng))


def is_not_c(state):
    return torch.tensor([item != "c" for item in state])


RESAMPLERS = (multinomial, residual, stratified, systematic)
SHORT = replace(SMALL, emission=SMALL.emission[:2])  # two steps: three particles stay enumerable under every resampler


@pytest.mark.parametrize("ess_below", (None, 0.5, 0.8))
@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("hmm", (SMALL, DEADLY), ids=("small", "deadly"))
def test_smc_is_exact(hmm, resampler, ess_below):
    laws_op.law_expected_measure(running(smc(hmm, 2, resampler, ess_below)), hmm.posterior())


@pytest.mark.parametrize("ess_below", (None, 0.8))
@pytest.mark.parametrize("resampler", (residual, stratified, systematic), ids=lambda f: f.__name__)
def test_three_particles_are_exact(resampler, ess_below):
    laws_op.law_expected_measure(running(smc(SHORT, 3, resampler, ess_below)), SHORT.posterior())


def test_three_particles_are_exact_with_independent_draws():
    laws_op.law_expected_measure(running(smc(SHORT, 3, multinomial, 0.8)), SHORT.posterior())


@pytest.mark.parametrize(("hmm", "ess_below"), [(SMALL, 0.5), (DEADLY, 0.8)])
def test_three_particles_are_exact_over_three_steps(hmm, ess_below):
    laws_op.law_expected_measure(running(smc(hmm, 3, systematic, ess_below)), hmm.posterior())


def test_dead_paths_count_as_nothing():
    found = expected_measure(running(smc(DEADLY, 2, systematic, None)), laws_op.same_point)
    assert found.num_dead > 0 and abs(found.normaliser - DEADLY.evidence()) < 1e-15


@pytest.mark.parametrize("hmm", (SMALL, DEADLY), ids=("small", "deadly"))
def test_proposal_weights_correct(hmm):
    laws_op.law_expected_measure(running(smc(hmm, 2, systematic, 0.8, ProposedStep)), hmm.posterior())


def test_fresh_particles_are_the_prior():
    wanted = {(x,): p for x, p in enumerate(SMALL.initial)}
    laws_op.law_expected_measure(running(Spawn(2) >> Advance(Step(SMALL))), wanted)


KEEPERS = (
    Resample(systematic, None),
    Resample(multinomial, None),
    Resample(systematic, 1.0, num=3),
    Resample(residual, 0.1),
    Thin(0.7),
    Thin(1.0),
    Draw(),
    Spawn(3),
    Chain(()),
)


@pytest.mark.parametrize("op", KEEPERS)
def test_measure_is_kept(op):
    laws_op.law_keeps_the_measure(op, MIXED)


PURE = (*KEEPERS, Reweight(lambda state: torch.arange(len(state)).double()), Condition(is_not_c), Top(2), Heaviest(), Resample(systematic) >> Top(2))


@pytest.mark.parametrize("law", laws_op.PURE_LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", PURE)
def test_law(op, law):
    law(op, MIXED)


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda f: f.__name__)
def test_parents_are_recorded(resampler):
    laws_op.law_parents_are_recorded(Resample(resampler, None), MIXED)


def test_composition_is_associative():
    laws_op.law_associative(Spawn(3), Resample(multinomial, None), Repeat(Thin(0.9), 2), MIXED)


def test_guarantee_is_the_weakest():
    assert (Spawn(2) >> Resample(systematic)).guarantee == Guarantee.UNBIASED
    assert (Repeat(Spawn(2) >> Top(1), 2) >> Draw()).guarantee == Guarantee.BIASED
    assert Chain(()).guarantee == Guarantee.EXACT


def test_condition_restricts():
    found = measure_of(Condition(is_not_c).apply(MIXED, TorchRng(0)), laws_op.same_point)
    wanted = {x: w for x, w in measure_of(MIXED, laws_op.same_point).items() if x != "c"}
    assert difference(found, wanted) < 1e-15


def test_condition_on_nothing_left_says_so():
    with pytest.raises(DeadParticles, match="none of 4"):
        Condition(lambda state: torch.zeros(len(state), dtype=torch.bool)).apply(MIXED, TorchRng(0))


def test_top_keeps_the_heaviest_as_they_are():
    kept = Top(2).apply(MIXED, TorchRng(0))
    before = measure_of(MIXED, laws_op.same_point)
    assert kept.state.items == ("c", "a")
    assert difference(measure_of(kept, laws_op.same_point), {x: before[x] for x in "ca"}) < 1e-15


def test_heaviest_and_mean():
    assert Heaviest().apply(MIXED, TorchRng(0)).state.items == ("c",)
    weights = normalised(measure_of(MIXED, laws_op.same_point))
    values = torch.tensor([[1.0, 0.0], [5.0, 5.0], [2.0, 1.0], [4.0, 0.0]])
    wanted = [weights["a"] + 2 * weights["c"] + 4 * weights["d"], weights["c"]]
    assert mean(MIXED, values).tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("at", (0, 1, 2))
@pytest.mark.parametrize("kernel", (Gibbs, Metropolis))
def test_moves_leave_the_posterior(kernel, at):
    laws_op.law_leaves_target(kernel(SMALL, at), SMALL.posterior())


def test_move_keeps_the_measure_at_its_target():
    op = smc(SMALL, 2, systematic, 0.5) >> Move(Gibbs(SMALL, 1))
    laws_op.law_expected_measure(running(op), SMALL.posterior())


def test_move_refuses_a_kernel_that_weighs():
    with pytest.raises(BadWeight, match="use Advance"):
        returned(Move(ProposedStep(SMALL)).run(TWO, TorchRng(0)))


@dataclass(frozen=True)
class Noting:
    """A kernel that notes what it was given."""

    seen: list

    guarantee = Guarantee.EXACT

    def __call__(self, state, rng):
        yield from ()
        self.seen.append(tuple(state))
        return Batch(tuple(f"{item}+" for item in state)), torch.ones(len(state), dtype=torch.float64)


def test_the_dead_are_not_advanced():
    seen = []
    after = returned(Advance(Noting(seen)).run(MIXED, TorchRng(0)))
    assert seen == [("a", "c", "d")]
    assert [x for x, w in zip(after.state, after.log_w) if w > -math.inf] == ["a+", "c+", "d+"]
    assert difference({}, {}) == 0 and after.log_w.tolist() == [math.log(0.5) + 1, -math.inf, 1.2, 0.0]


def test_all_dead_is_one_clear_line():
    dead = uniform_particles(Batch(("a", "b"))).reweighted(as_log_weights([-math.inf] * 2))
    for op in (Resample(systematic), Resample(multinomial, None), Advance(Step(SMALL)), Draw(), Heaviest(), Thin(), Top(1)):
        with pytest.raises(DeadParticles, match="all 2 particles"):
            returned(op.run(dead, TorchRng(0)))


def test_nan_names_the_particle():
    with pytest.raises(BadWeight, match="particle 1"):
        returned(Reweight(lambda state: as_log_weights([0.0, math.nan, 0.0, 0.0])).run(MIXED, TorchRng(0)))


def test_ess_is_recorded_even_when_nothing_is_resampled():
    after = Resample(systematic, 0.1).apply(MIXED, TorchRng(0))
    assert len(after.ess) == 1 and after.ancestors == () and torch.equal(after.log_w, MIXED.log_w)


@pytest.mark.parametrize(
    "make",
    (lambda: Resample(systematic, 1.5), lambda: Thin(0.0), lambda: Spawn(0), lambda: ExtendStep(is_corrected=True, sampling=Sampling(top_k=2))),
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField):
        make()


LM = toy_lm("ab", seed=2)
PROMPT = Prompt(messages=(("raw", "b"),), max_tokens=3)


def test_while_ends_and_forks_seeds():
    op = Spawn(3) >> While(Advance(ExtendStep(max_tokens=1)), lambda p: not all(x.is_final for x in p.state))
    done = answer_all(op.run(start(Prefix(PROMPT)), TorchRng(0)), ToyProcess(LM))
    seeds = [ask.seed for turn in done.turns for ask in turn.asks]
    assert all(x.is_final for x in done.result.state) and len(set(seeds)) == len(seeds)


def test_finished_prefixes_ask_nothing_and_keep_their_weight():
    particles = uniform_particles(Batch((Prefix(PROMPT, finish="stop"), Prefix(PROMPT))))
    step = Advance(ExtendStep(sampling=Sampling(temperature=0.5), is_corrected=True))
    done = answer_all(step.run(particles, TorchRng(0)), ToyProcess(LM))
    (turn,) = done.turns
    assert isinstance(turn, Turn) and [type(a) for a in turn.asks] == [Extend]
    assert float(done.result.log_w[0]) == 0.0 and float(done.result.log_w[1]) != 0.0


@pytest.mark.parametrize("temperature", (0.5, 1.0, 2.0))
def test_corrected_sampling_is_the_models_own(temperature):
    extend = ExtendStep(max_tokens=1, sampling=Sampling(temperature=temperature), is_corrected=True)
    op = Spawn(2) >> Repeat(Resample(systematic, 0.9) >> Advance(extend), 3)
    wanted = {p.tokens: math.exp(p.log_p) for p in LM.completions(PROMPT)}

    def program(rng):
        return answer_all(op.run(start(Prefix(PROMPT)), rng), ToyProcess(LM, rng)).result

    found = laws_op.law_expected_measure(program, wanted, key=lambda prefix: prefix.tokens)
    assert found.num_paths > 100


def test_batch_select_gathers():
    laws_op.law_select_gathers(Batch(("a", "b", "c")), list)
