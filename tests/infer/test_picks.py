"""How a particle filter turns verdicts into factors and weights into an answer."""

import math

import pytest
import torch

from ponder.core.asks import ABSTAIN, Candidate, Prompt, Verdict
from ponder.core.errors import DeadParticles
from ponder.core.guarantee import Guarantee
from ponder.core.rng import EnumeratingRng, TorchRng, enumerate_paths
from ponder.infer.ops import log_odds, log_prob
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.picks import argmax, drawn, vote
from ponder.infer.resample.systematic import systematic
from ponder.testing.laws_strategy import played
from ponder.testing.verifiers import Counting

PROMPT = Prompt(messages=(("user", "?"),))
GIVEN = (
    Candidate("a", "a", (1,), finish="stop", score=0.1),
    Candidate("b", "b", (2,), finish="stop", score=0.9),
    Candidate("a", "a", (3,), finish="stop", score=0.2),
    Candidate("c", "c", (4,), finish="budget", score=5.0),
)
WEIGHTS = torch.tensor([0.2, 0.3, 0.25, 0.25], dtype=torch.float64)


def test_picks():
    assert vote(PROMPT, GIVEN, WEIGHTS, TorchRng(0)) == 2  # the heaviest "a": together they weigh more than "b"
    assert argmax(PROMPT, GIVEN, WEIGHTS, TorchRng(0)) == 1  # not the cut-off one, however high its score
    assert dict(enumerate_paths(lambda rng: drawn(PROMPT, GIVEN, WEIGHTS, rng))) == pytest.approx({0: 0.2, 1: 0.3, 2: 0.25, 3: 0.25})
    assert isinstance(next(iter(enumerate_paths(lambda rng: rng)))[0], EnumeratingRng)


def test_the_dead_are_never_picked():
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert {pick(PROMPT, GIVEN, weights, TorchRng(0)) for pick in (vote, argmax, drawn)} == {2}


def test_only_a_draw_is_unbiased():
    make = lambda pick: ParticleFilter(num=2, resampler=systematic, pick=pick)
    assert [make(p).guarantee for p in (vote, argmax, drawn)] == [Guarantee.BIASED, Guarantee.BIASED, Guarantee.UNBIASED]


@pytest.mark.parametrize(
    ("verdict", "prob", "odds"),
    [
        (Verdict(0.25, "probability"), math.log(0.25), math.log(1 / 3)),
        (Verdict(math.log(0.25), "log_p"), math.log(0.25), math.log(1 / 3)),
        (Verdict(-2.0, "score"), -2.0, -2.0),
        (Verdict(0.0, "probability"), math.log(1e-7), math.log(1e-7)),
        (Verdict(1.0, "probability"), 0.0, -math.log(1e-7)),
    ],
)
def test_verdicts_become_factors(verdict, prob, odds):
    assert log_prob(verdict) == pytest.approx(prob, abs=1e-6)
    assert log_odds(verdict) == pytest.approx(odds, abs=1e-6)


def test_an_empty_text_has_no_probability():
    judged = MeanProbability().judge(PROMPT, (Candidate("", None), Candidate("a", "a", (1, 2), log_p=-2.0)), ())
    assert judged == (ABSTAIN, Verdict(math.exp(-1.0), "probability"))


class Condemning(Counting):
    """Says that everything is impossible."""

    def verdict(self, text):
        return Verdict(-math.inf, "log_p")


def test_when_all_die_it_says_so():
    with pytest.raises(DeadParticles, match="all 3 particles"):
        played(ParticleFilter(num=3, resampler=systematic, verifier=Condemning("a"), potential=log_prob))


def test_diagnostics_tell_what_happened():
    outcome = played(ParticleFilter(num=4, resampler=systematic, step_tokens=1, ess_below=None)).result
    told = outcome.diagnostics
    assert sum(told["weights"]) == pytest.approx(1.0) and told["num_resampled"] == len(told["ancestors"]) == len(told["ess"])
    assert all(len(a) == 4 and set(a) <= {0, 1, 2, 3} for a in told["ancestors"]) and all(1 - 1e-9 <= e <= 4 + 1e-9 for e in told["ess"])
    assert math.isfinite(told["log_evidence"]) and 1 <= told["num_distinct"] <= 4 and 0 < outcome.confidence <= 1 + 1e-12
