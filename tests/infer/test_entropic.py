"""Entropic particle filter: whatever the temperature and the look ahead, the measure is kept; what annealing is for, it does."""

import math
from dataclasses import dataclass

import pytest

from infer.chains import COOL, ONE, TINY
from ponder.core.asks import Prefix, Prompt, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, as_log_weights
from ponder.infer.entropic_filter import AnnealedResample, EntropicFilter
from ponder.infer.ops import Judged
from ponder.infer.picks import drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.testing import laws_op, laws_strategy
from ponder.testing.exact import expected_distribution, returned
from ponder.testing.laws_strategy import PROMPT, played
from ponder.testing.verifiers import Counting


@dataclass(frozen=True)
class Fond(Counting):
    """So fond of `what` that one of it outweighs a handful of particles."""

    by: float = 2.0

    def verdict(self, text):
        return Verdict(self.by * text.count(self.what))


def entropic(**changes) -> EntropicFilter:
    settings = {"num": 2, "resampler": systematic, "verifier": Fond("b"), "until": (), "step_tokens": 1, "sampling": COOL, "pick": drawn}
    return EntropicFilter(**settings | {"ess_below": 0.95} | changes)


@pytest.mark.parametrize("resampler", (residual, stratified, systematic))
@pytest.mark.parametrize("anneal", ("ess", "entropy"))
@pytest.mark.parametrize("is_looking", (False, True))
def test_evidence_is_unbiased(resampler, anneal, is_looking):
    strategy = entropic(anneal=anneal, is_looking=is_looking, resampler=resampler)
    assert strategy.guarantee == Guarantee.UNBIASED
    laws_strategy.law_weights_are_proper(strategy, lambda p: 2.0 * p.text.count("b"), COOL, lm=ONE, prompt=TINY)


@pytest.mark.parametrize("is_looking", (False, True))
def test_evidence_is_unbiased_over_more_steps(is_looking):
    prompt = Prompt(messages=PROMPT.messages, max_tokens=3)
    weight = lambda p: 2.0 * p.text.count("b") + p.log_p - p.log_q
    laws_strategy.law_weights_are_proper(entropic(is_looking=is_looking, is_corrected=True), weight, COOL, lm=ONE, prompt=prompt)


def test_three_particles_and_every_verdict():
    strategy = entropic(num=3, twist="full", ess_below=None, anneal="entropy")
    laws_strategy.law_weights_are_proper(
        strategy, lambda p: sum(2.0 * p.text[: i + 1].count("b") for i in range(len(p.tokens))), COOL, lm=ONE, prompt=TINY
    )


def judged(tokens: int) -> Judged:
    return Judged(Prefix(Prompt(messages=PROMPT.messages, max_tokens=10), tuple(range(tokens))))


FOUR = Particles(Batch(tuple(judged(i + 1) for i in range(4))), as_log_weights([0.0, 3.0, -math.inf, 1.0]), log_z=0.3)


@pytest.mark.parametrize("anneal", ("ess", "entropy", "none"))
@pytest.mark.parametrize("resampler", (multinomial, systematic))
def test_the_op_keeps_the_measure(anneal, resampler):
    op = AnnealedResample(resampler, None, anneal, None)
    laws_op.law_keeps_the_measure(op, FOUR)
    for law in laws_op.PURE_LAWS:
        law(op, FOUR)


def test_temperatures_by_hand():
    """Weights 1, e^3, 0, e; a quarter of the tokens written."""
    w = [x / (1 + math.e**3 + math.e) for x in (1, math.e**3, math.e)]
    size, entropy = 1 / sum(x * x for x in w), -sum(x * math.log(x) for x in w) / math.log(4)
    temperature = lambda anneal: AnnealedResample(systematic, None, anneal, None).temperature(FOUR)
    assert temperature("ess") == pytest.approx(4 / size * 0.75) and temperature("entropy") == pytest.approx(1 / (entropy + (1 - entropy) * 0.25))
    assert temperature("none") == 1.0
    late = Particles(Batch((judged(6),) * 4), FOUR.log_w)
    assert AnnealedResample(systematic, None, "ess", None).temperature(late) == 1.0


def test_annealing_keeps_more_particles_alive_early_on():
    """Distinct parents at the first resampling, over fixed seeds."""
    long = Prompt(messages=PROMPT.messages, max_tokens=12)

    def num_parents(anneal):
        strategy = entropic(num=8, anneal=anneal, ess_below=None, verifier=Fond("b", by=5.0))
        told = [played(strategy, long, key=k).result.diagnostics["ancestors"] for k in range(10)]
        return sum(len(set(a[0])) for a in told) / 10

    assert num_parents("ess") > num_parents("none") + 0.5 and num_parents("entropy") > num_parents("none") + 0.2


@dataclass(frozen=True)
class Foreseen:
    """A look ahead that knows: prefixes of two tokens are about to be praised."""

    guarantee = Guarantee.EXACT

    def __call__(self, state, rng):
        yield from ()
        return state, as_log_weights([2.0 if len(item.prefix.tokens) == 2 else 0.0 for item in state])


def test_a_look_ahead_sees_what_weights_do_not():
    two = Particles(Batch((judged(1), judged(2))), as_log_weights([0.0, 0.0]))
    op = AnnealedResample(multinomial, None, "none", Foreseen())
    laws_op.law_keeps_the_measure(op, two)
    share = 1 / (1 + math.e**2)
    chance = expected_distribution(lambda rng: [len(x.prefix.tokens) for x in returned(op.run(two, rng)).state].count(2))
    assert chance.measure == pytest.approx({0: share**2, 1: 2 * share * (1 - share), 2: (1 - share) ** 2})
    laws_op.law_keeps_the_measure(AnnealedResample(systematic, None, "entropy", Foreseen()), FOUR)


@pytest.mark.parametrize(
    "changes", [{"num": 0}, {"twist": "half"}, {"anneal": "often"}, {"ess_below": 1.5}, {"step_tokens": None}], ids=lambda c: next(iter(c))
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(BadField, match=next(iter(changes))):
        entropic(**changes)
