"""Strategies meet their closed forms in a simulated world, verifiers have the faults that were set, and every law has teeth."""

import math
from dataclasses import dataclass, replace

import pytest

from ponder.core.asks import ABSTAIN, Outcome, Sampling
from ponder.core.errors import BadField
from ponder.infer.best_of_n import BestOfN
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.picks import argmax
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.testing.closed_forms import accepted_of, best_is_right, best_of_n_of, compositions, coverage_of, vote_of
from ponder.testing.laws_simulator import law_best_of_n, law_coverage, law_steering_pays, law_vote
from ponder.testing.simulated_verifier import SimulatedVerifier
from ponder.testing.simulator import World, play_many
from ponder.verify.measure import auroc, expected_calibration_error

PLAIN = Sampling(temperature=1.0)
FLAT = World(depth=(3, 3), step_accuracy=0.75, step_tokens=4)
VOTING = World(depth=(1, 1), step_accuracy=0.45, num_wordings=1, num_wrong=3, step_tokens=2, is_telling=True)
LONG = World(depth=(8, 8), step_accuracy=0.8, spread=0.5, step_spread=0.5, step_tokens=4)
NUM = 300
NOISE = SimulatedVerifier(auroc=0.501, sharpness=300.0)  # sure of itself, and knows nothing
ONE_SAMPLE = Sample(sampling=PLAIN)


@dataclass(frozen=True, kw_only=True)
class Turned:
    """A strategy whose candidates are put in another order before the first one is taken: a mutant."""

    of: object
    order: object  # candidates -> candidates

    def run(self, prompt, rng):
        outcome = yield from self.of.run(prompt, rng)
        return Outcome(tuple(self.order(outcome.candidates)))


def best(num, verifier):
    return BestOfN(num=num, verifier=verifier, sampling=PLAIN)


def voting(num):
    return SelfConsistency(num=num, sampling=PLAIN)


def filtering(verifier, resampler=systematic):
    return ParticleFilter(num=8, resampler=resampler, verifier=verifier, sampling=PLAIN, until=("\n",), pick=argmax)


def deaf(log_w, num, rng):
    """A resampler that ignores the weights."""
    return systematic(log_w * 0, num, rng)


def test_coverage():
    law_coverage(Sample(num=8), FLAT, num=8, problems=NUM)
    for mutant in (Sample(num=3), Turned(of=Sample(num=8), order=lambda c: c[:3])):
        with pytest.raises(AssertionError, match="coverage"):
            law_coverage(mutant, FLAT, num=8, problems=NUM)


@pytest.mark.parametrize("area", (0.501, 0.7, 0.9, 1.0))
def test_best_of_n(area):
    good = best(8, SimulatedVerifier(auroc=area))
    law_best_of_n(good, FLAT, num=8, auroc=area, problems=NUM)
    mutants = [best(8, SimulatedVerifier(auroc=0.85))] if area < 0.6 else [Turned(of=good, order=lambda c: c[::-1]), best(1, good.verifier)]
    for mutant in mutants:
        with pytest.raises(AssertionError, match="best of 8"):
            law_best_of_n(mutant, FLAT, num=8, auroc=area, problems=NUM)


@pytest.mark.parametrize("num", (2, 5, 8))
def test_vote(num):
    law_vote(voting(num), VOTING, num=num, problems=500)


def test_vote_has_teeth():
    rare = Turned(of=voting(8), order=lambda c: sorted(c, key=lambda x: x.answer))
    for mutant in (voting(1), Turned(of=voting(8), order=lambda c: c[::-1]), rare):
        with pytest.raises(AssertionError, match="vote of 8"):
            law_vote(mutant, VOTING, num=8, problems=500)
    with pytest.raises(AssertionError, match="one wording"):
        law_vote(voting(8), FLAT, num=8, problems=10)


def test_steering_pays_where_step_verdicts_inform_and_not_where_they_are_noise():
    informed = SimulatedVerifier(auroc=0.9, prior=0.6)
    plain = lambda verifier: best(8, verifier)
    law_steering_pays(filtering, plain, informed=informed, noise=NOISE, world=LONG, problems=100)
    mutants = (
        (lambda v: filtering(v, deaf), "informative"),
        (lambda v: Turned(of=filtering(v), order=lambda c: sorted(c, key=lambda x: x.answer)), "noise"),
        (lambda v: best(16, v), "equal cost"),
    )
    for mutant, found in mutants:
        with pytest.raises(AssertionError, match=found):
            law_steering_pays(mutant, plain, informed=informed, noise=NOISE, world=LONG, problems=100)


def test_a_false_positive_rate_is_a_ceiling():
    """However many samples: the best of accepted ones is right with probability p / (p + (1 - p) f) at most."""
    world = World(depth=(2, 2), step_accuracy=0.5, spread=0.0, step_spread=0.0, step_tokens=2, num_wrong=1)  # ties tell nothing
    p = world.problem(0).accuracy
    shares = []
    for num in (4, 32):
        picked = list(play_many(best(num, SimulatedVerifier(auroc=1.0, false_positives=0.2)), world, NUM))
        shares.append(sum(one.is_right for one in picked) / NUM)
        wanted = accepted_of(p, num, 0.2)
        assert abs(shares[-1] - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / NUM)
    assert abs(accepted_of(p, 10**6, 0.2) - p / (p + (1 - p) * 0.2)) < 1e-9 and shares[1] < 0.75


def verdicts(verifier, num=400, world=FLAT):
    pairs = []
    for index, played in enumerate(play_many(Sample(num=4, sampling=PLAIN), world, num)):
        told = verifier.judge(world.prompt(index), played.outcome.candidates, ())
        pairs += [(v.value, c.answer == "0", c.answer) for v, c in zip(told, played.outcome.candidates)]
    return pairs


@pytest.mark.parametrize("area", (0.6, 0.75, 0.95))
def test_a_verifier_has_the_area_that_was_set(area):
    pairs = verdicts(SimulatedVerifier(auroc=area))
    assert auroc([v for v, _, _ in pairs], [ok for _, ok, _ in pairs]) == pytest.approx(area, abs=0.05)


def test_a_verifier_is_calibrated_where_it_was_set_so():
    right = [ok for _, ok, _ in verdicts(SimulatedVerifier())]
    base = sum(right) / len(right)
    errors = {}
    for sharpness in (0.3, 1.0, 4.0):
        pairs = verdicts(SimulatedVerifier(auroc=0.8, prior=base, sharpness=sharpness))
        errors[sharpness] = expected_calibration_error([v for v, _, _ in pairs], [ok for _, ok, _ in pairs])
    assert errors[1.0] < 0.04 < 0.1 < min(errors[0.3], errors[4.0])


def test_a_verifier_abstains_and_accepts_wrong_ones_as_often_as_set():
    silent = [v for v, _, _ in verdicts(SimulatedVerifier(abstains=0.3))]
    assert silent.count(None) / len(silent) == pytest.approx(0.3, abs=0.04)
    wrong = [v for v, ok, _ in verdicts(SimulatedVerifier(auroc=1.0, false_positives=0.15)) if not ok]
    assert sum(wrong) / len(wrong) == pytest.approx(0.15, abs=0.04)
    prompt = FLAT.prompt(0)
    part = next(play_many(ONE_SAMPLE, FLAT, 1)).outcome.candidates[0]
    unfinished = replace(part, text=part.text.rpartition("#")[0])
    assert SimulatedVerifier(judges_steps=False).judge(prompt, (unfinished,), ()) == (ABSTAIN,)
    assert SimulatedVerifier(auroc=1.0).judge(prompt, (unfinished,), ())[0].value == float("x" not in part.text)


def test_a_verifier_can_err_as_the_model_errs():
    """The most popular wrong answer looks better than the others only where `popular` says so, and then best-of-N picks it."""
    gap = {}
    for popular in (0.0, 0.9):
        pairs = [(v, a) for v, ok, a in verdicts(SimulatedVerifier(auroc=0.8, popular=popular)) if not ok]
        first, rest = [v for v, a in pairs if a == "1"], [v for v, a in pairs if a != "1"]
        gap[popular] = sum(first) / len(first) - sum(rest) / len(rest)
    assert abs(gap[0.0]) < 0.05 < 0.2 < gap[0.9]


def test_closed_forms_agree_with_each_other():
    assert best_of_n_of(0.3, 5, 1.0) == pytest.approx(coverage_of(0.3, 5), abs=1e-12)
    assert best_of_n_of(0.3, 5, 0.5) == pytest.approx(0.3, abs=1e-9), "noise picks one sample"
    assert best_is_right(1, 1, 0.83) == pytest.approx(0.83, abs=1e-9), "two candidates: the area itself"
    assert accepted_of(0.3, 5, 0.0) == pytest.approx(coverage_of(0.3, 5), abs=1e-12)
    assert vote_of((0.6, 0.4), 3) == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4, abs=1e-12)
    assert vote_of((0.5, 0.3, 0.2), 1) == pytest.approx(0.5, abs=1e-12)
    assert len(list(compositions(8, 4))) == math.comb(11, 3)


@pytest.mark.parametrize("settings", ({"auroc": 0.4}, {"sharpness": 0.0}, {"prior": 1.0}, {"false_positives": 1.5}, {"abstains": -1}, {"popular": 2}))
def test_impossible_verifiers_are_refused(settings):
    with pytest.raises(BadField):
        SimulatedVerifier(**settings)
