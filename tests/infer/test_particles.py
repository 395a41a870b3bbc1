"""Strategies that move particles x the laws of their role, and every setting of the particle filter that a spec can name."""

import math

import pytest

from infer.chains import COOL, COUNTS, ONE, TINY
from ponder.catalogue import RESAMPLERS, strategy
from ponder.core.asks import Verdict
from ponder.core.errors import BadField
from ponder.infer.constrained_smc import ConstrainedSMC, With, Without
from ponder.infer.entropic_filter import EntropicFilter
from ponder.infer.ops import log_odds, log_prob
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.particle_filter import MeanProbability
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.path_search import PathSearch
from ponder.infer.picks import argmax, drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.systematic import systematic
from ponder.infer.zero_order import ZeroOrder
from ponder.testing import laws_strategy as laws
from ponder.testing.verifiers import Abstaining, Seeing

STRATEGIES = {
    "gibbs": ParticleGibbs(num=3, verifier=MeanProbability(), until=("a",)),
    "gibbs of the paper": ParticleGibbs(num=3, num_sweeps=2, verifier=COUNTS, step_tokens=3, twist="full", burn_in=1, pick=argmax),
    "gibbs, seldom resampled": ParticleGibbs(num=3, num_sweeps=2, verifier=Seeing("a"), step_tokens=3, ess_below=0.5, pick=drawn),
    "gibbs, rewired": ParticleGibbs(num=2, num_sweeps=2, verifier=COUNTS, step_tokens=4, is_rewired=True, twist="full"),
    "gibbs, silent verifier": ParticleGibbs(num=2, verifier=Abstaining(), step_tokens=3, is_corrected=True),
    "constrained": ConstrainedSMC(num=4, resampler=systematic, constraints=(With(("a",), bonus=1.0),)),
    "constrained, one by one": ConstrainedSMC(
        num=4, resampler=residual, constraints=(Without(("aba",)),), step_tokens=2, ess_below=None, sampling=COOL, pick=drawn
    ),
    "entropic": EntropicFilter(num=4, resampler=systematic, verifier=MeanProbability(), until=("a",), ess_below=None),
    "entropic, looking ahead": EntropicFilter(
        num=3, resampler=multinomial, verifier=COUNTS, step_tokens=4, anneal="entropy", is_looking=True, ess_below=0.9, twist="full", pick=drawn
    ),
    "entropic, silent verifier": EntropicFilter(
        num=3, resampler=residual, verifier=Abstaining(), step_tokens=4, is_looking=True, ess_below=None, anneal="none", pick=argmax
    ),
    "zero order": ZeroOrder(num_starts=3, num_rounds=3, num_neighbours=2, verifier=MeanProbability()),
    "zero order, silent verifier": ZeroOrder(num_rounds=2, verifier=Abstaining()),
    "zero order, asking verifier": ZeroOrder(num_rounds=1, verifier=Seeing("a"), share=1.0),
    "paths": PathSearch(verifier=COUNTS, step_tokens=2),
    "paths that never go back": PathSearch(verifier=MeanProbability(), num=3, num_children=2, back=0, forth=1, until=("a",)),
    "paths, silent verifier": PathSearch(verifier=Abstaining(), num=1, num_children=2, back=2, forth=3, step_tokens=1),
    "tempering": ParallelTempering(num=2, num_rounds=2, verifier=MeanProbability(), until=("a",)),
    "tempering of four": ParallelTempering(
        num=2, num_chains=4, ladder=1.5, num_rounds=2, burn_in=1, verifier=COUNTS, step_tokens=4, twist="full", pick=drawn
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


ALONE = {
    "filter": EntropicFilter(num=1, resampler=systematic, verifier=COUNTS, step_tokens=1, is_looking=True, ess_below=None, sampling=COOL),
    "constrained": ConstrainedSMC(num=1, resampler=systematic, sampling=COOL, step_tokens=1),
    "zero order": ZeroOrder(num_rounds=0, verifier=COUNTS, sampling=COOL),
    "paths": PathSearch(num=1, num_children=1, back=0, forth=1, step_tokens=1, verifier=COUNTS, sampling=COOL),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone_is_a_sample(name):
    laws.law_alone_is_a_sample(ALONE[name], COOL)


WRONG = {
    "num_starts": lambda: ZeroOrder(num_starts=0, verifier=COUNTS),
    "num_rounds": lambda: ZeroOrder(num_rounds=-1, verifier=COUNTS),
    "num_neighbours": lambda: ZeroOrder(num_neighbours=0, verifier=COUNTS),
    "share": lambda: ZeroOrder(share=0.0, verifier=COUNTS),
    "num": lambda: PathSearch(num=0, verifier=COUNTS),
    "num_children": lambda: PathSearch(num_children=0, verifier=COUNTS),
    "back": lambda: PathSearch(back=-1, verifier=COUNTS),
    "forth": lambda: PathSearch(back=2, forth=2, verifier=COUNTS),
    "until": lambda: PathSearch(until=(), verifier=COUNTS),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_settings_are_refused(name):
    with pytest.raises(BadField, match=f" {name}="):
        WRONG[name]()
