"""Strategies that move particles x the laws of their role, and every setting of the particle filter that a spec can name."""

import math

import pytest

from infer.chains import COOL, COUNTS, ONE, TINY
from ponder.catalogue import RESAMPLERS, strategy
from ponder.core.asks import Verdict
from ponder.infer.constrained_smc import ConstrainedSMC, With, Without
from ponder.infer.entropic_filter import EntropicFilter
from ponder.infer.ops import log_odds, log_prob
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.particle_filter import MeanProbability
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.picks import argmax, drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.systematic import systematic
from ponder.testing import laws_strategy as laws
from ponder.testing.verifiers import Abstaining, Seeing

STRATEGIES = {
    "gibbs": ParticleGibbs(num=3, verifier=MeanProbability(), until=("a",)),
    "gibbs of the paper": ParticleGibbs(num=3, verifier=COUNTS, step_tokens=2, twist="full", burn_in=2, pick=argmax),
    "gibbs, seldom resampled": ParticleGibbs(num=4, verifier=Seeing("a"), step_tokens=2, ess_below=0.5, pick=drawn),
    "gibbs, silent verifier": ParticleGibbs(num=2, verifier=Abstaining(), step_tokens=3, is_corrected=True),
    "constrained": ConstrainedSMC(num=4, resampler=systematic, constraints=(With(("a",), bonus=1.0),)),
    "constrained, one by one": ConstrainedSMC(
        num=6, resampler=residual, constraints=(Without(("aba",)),), step_tokens=1, ess_below=None, sampling=COOL, pick=drawn
    ),
    "entropic": EntropicFilter(num=4, resampler=systematic, verifier=MeanProbability(), until=("a",), ess_below=None),
    "entropic, looking ahead": EntropicFilter(
        num=3, resampler=multinomial, verifier=COUNTS, step_tokens=2, anneal="entropy", is_looking=True, ess_below=0.9, twist="full", pick=drawn
    ),
    "entropic, silent verifier": EntropicFilter(
        num=3, resampler=residual, verifier=Abstaining(), step_tokens=2, is_looking=True, ess_below=None, anneal="none", pick=argmax
    ),
    "tempering": ParallelTempering(num=3, verifier=MeanProbability(), until=("a",)),
    "tempering of four": ParallelTempering(
        num=2, num_chains=4, ladder=1.5, num_rounds=4, burn_in=1, verifier=COUNTS, step_tokens=2, twist="full", pick=drawn
    ),
    "tempering of one": ParallelTempering(num=2, num_chains=1, verifier=Seeing("a"), step_tokens=3, pick=argmax, is_corrected=True),
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


POTENTIALS = {"odds": log_odds, "prob": log_prob}


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("twist", ("ratio", "full"))
@pytest.mark.parametrize("potential", POTENTIALS)
def test_what_a_spec_names_is_unbiased(resampler, twist, potential):
    """potential x twist x resampler from their strings: evidence and answers by enumeration."""
    spec = f"particle_filter:num=2,step_tokens=1,temperature=0.7,pick=drawn,ess_below=0.95,resampler={resampler},twist={twist},potential={potential}"

    def weight(prefix):
        log_p = [0.0] * (len(prefix.tokens) + 1)
        for i, token in enumerate(prefix.tokens):
            log_p[i + 1] = log_p[i] + ONE.row(prefix.tokens[i - 1] if i else None)[token]
        factors = [POTENTIALS[potential](Verdict(math.exp(log_p[i] / i), "probability")) for i in range(1, len(log_p))]
        return factors[-1] if twist == "ratio" else math.fsum(factors)

    laws.law_weights_are_proper(strategy(spec), weight, COOL, lm=ONE, prompt=TINY)
