"""Every bug of conditional, tempered and annealed particles breaks its law, and what we do instead keeps it."""

import pytest

from museum import chain_bugs as bugs
from museum.inference_bugs import Exhibit
from ponder.infer.conditional import Sweep
from ponder.infer.entropic_filter import AnnealedResample
from ponder.infer.parallel_tempering import exchanged

EXHIBITS = (
    Exhibit("the reference's final weight competes with current ones", "its_hub ParticleGibbs: the reference is always stopped (code read)",
            bugs.law_keeps_its_target, bugs.FinalWeight, Sweep),
    Exhibit("the reference's verdict of another step", "probabilistic-inference-scaling: reference reward read one step off (code read)",
            bugs.law_keeps_its_target, bugs.OneStepOff, Sweep),
    Exhibit("a fork of the reference inherits its future", "our own",
            bugs.law_keeps_its_target, bugs.ForksTheWhole, Sweep),
    Exhibit("the reference is resampled away", "our own",
            bugs.law_keeps_its_target, bugs.LosesTheReference, Sweep),
    Exhibit("a new past without a look at the rest", "our own",
            bugs.law_keeps_its_target, bugs.RewiresByWeight, Sweep),
    Exhibit("nobody descends from the reference", "our own",
            bugs.law_keeps_its_target, bugs.NeverForksTheReference, Sweep),
    Exhibit("sign of the tempering", "https://github.com/blackjax-devs/blackjax/issues/914",
            bugs.law_exchange_keeps_the_product, bugs.sign_of_the_gap, exchanged),
    Exhibit("an exchange by tempered scores", "our own",
            bugs.law_exchange_keeps_the_product, bugs.scores_at_their_own_power, exchanged),
    Exhibit("an exchange without a test", "our own",
            bugs.law_exchange_keeps_the_product, bugs.always_exchanged, exchanged),
    Exhibit("annealed weights are forgotten", "its_hub EntropicParticleFiltering, as in arXiv:2510.05825: equal weights after annealing",
            bugs.law_annealing_keeps_the_measure, bugs.ForgetsTheTemperature, AnnealedResample),
    Exhibit("what was seen ahead counts", "an auxiliary filter without its second-stage weights",
            bugs.law_annealing_keeps_the_measure, bugs.KeepsThePromise, AnnealedResample),
)  # fmt: skip


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: e.name)
def test_the_law_kills_the_bug(exhibit):
    with pytest.raises(AssertionError):
        exhibit.law(exhibit.wrong)


@pytest.mark.parametrize("right", list(dict.fromkeys(e.right for e in EXHIBITS)))
def test_the_right_way_passes(right):
    for law in {e.law for e in EXHIBITS if e.right is right}:
        law(right)
