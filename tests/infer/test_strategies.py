"""Strategies x laws, on a toy model: distributions, evidences and votes by enumeration of all random paths."""

import math
from fractions import Fraction

import pytest

from ponder.core.asks import Candidate, Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import TorchRng
from ponder.core.votes import by_path_probability, by_verdict, one_each, voted
from ponder.infer.beam import Beam
from ponder.infer.best_of_n import BestOfN
from ponder.infer.diverse_beam import DiverseBeam
from ponder.infer.greedy import Greedy
from ponder.infer.ops import log_odds, log_prob, normalized_score
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.picks import argmax, drawn, vote
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.testing import laws_strategy as laws
from ponder.testing.exact import difference
from ponder.testing.laws_strategy import LM, LONG, PROMPT, played
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyLM, ToyProcess
from ponder.testing.verifiers import Abstaining, Counting, Seeing

FLUENT = MeanProbability()
COOL = Sampling(temperature=0.7)
STRATEGIES = {
    "greedy": Greedy(),
    "sample": Sample(num=3),
    "best_of_n": BestOfN(num=4, verifier=FLUENT),
    "best_of_n, silent verifier": BestOfN(num=3, verifier=Abstaining()),
    "best_of_n, asking verifier": BestOfN(num=3, verifier=Seeing("a")),
    "vote": SelfConsistency(num=5),
    "weighted vote": SelfConsistency(num=5, verifier=FLUENT),
    "vote by path probability": SelfConsistency(num=5, weigh=by_path_probability),
    "beam": Beam(width=3),
    "beam of one": Beam(width=1, length_power=0.0),
    "diverse beam": DiverseBeam(width=4, num_groups=2),
    "particle filter": ParticleFilter(num=4, resampler=systematic, until=("a",)),
    "particle filter of the paper": ParticleFilter(
        num=4, resampler=multinomial, step_tokens=2, twist="full", ess_below=None, pick=argmax, verifier=Counting("b")
    ),
    "particle filter, corrected": ParticleFilter(num=3, resampler=residual, step_tokens=1, is_corrected=True, pick=drawn, potential=log_prob),
    "particle filter, silent verifier": ParticleFilter(num=3, resampler=stratified, step_tokens=3, verifier=Abstaining()),
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STRATEGIES)
def test_law(name, law):
    law(STRATEGIES[name])


ALONE = {
    "sample": Sample(sampling=COOL),
    "best_of_n": BestOfN(num=1, verifier=FLUENT, sampling=COOL),
    "vote": SelfConsistency(num=1, sampling=COOL),
    "particle filter": ParticleFilter(num=1, resampler=systematic, until=("a",), sampling=COOL),
    "particle filter of steps": ParticleFilter(num=1, resampler=multinomial, step_tokens=1, sampling=COOL, ess_below=None),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone_is_a_sample(name):
    laws.law_alone_is_a_sample(ALONE[name], COOL)


def test_samples_are_independent():
    found = laws.enumerated(Sample(num=2), lambda outcome: {tuple(c.tokens for c in outcome.candidates): 1.0})
    alone = {p.tokens: math.exp(p.log_p) for p in LM.completions(PROMPT)}
    assert difference(found.measure, {(x, y): p * q for x, p in alone.items() for y, q in alone.items()}) < 1e-12


@pytest.mark.parametrize("num", (1, 2, 3))
def test_best_of_n_has_the_law_of_the_maximum(num):
    strategy = BestOfN(num=num, verifier=FLUENT, sampling=COOL)
    prompt = Prompt(messages=PROMPT.messages, max_tokens=3 if num < 3 else 2)
    found = laws.enumerated(strategy, lambda o: {o.candidates[0].tokens: 1.0}, prompt=prompt)
    ranked = sorted(LM.completions(prompt, COOL), key=lambda p: p.log_p / len(p.tokens))
    mass = [math.exp(p.log_q) for p in ranked]
    below = [math.fsum(mass[:i]) for i in range(len(mass))]
    wanted = {x.tokens: (f + p) ** num - f**num for x, p, f in zip(ranked, mass, below)}
    assert difference(found.measure, wanted) < 1e-12


def exact_weight(potential):
    return lambda prefix: potential(Verdict(math.exp(prefix.log_p / len(prefix.tokens)), "probability"))


TINY = Prompt(messages=PROMPT.messages, max_tokens=2)
RESAMPLERS = (multinomial, residual, stratified, systematic)


@pytest.mark.parametrize("ess_below", (None, 0.95))
@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda f: f.__name__)
def test_particle_filter_is_unbiased(resampler, ess_below):
    strategy = ParticleFilter(num=2, resampler=resampler, step_tokens=1, ess_below=ess_below, sampling=COOL, pick=drawn)
    assert strategy.guarantee == Guarantee.UNBIASED
    laws.law_weights_are_proper(strategy, exact_weight(log_odds), COOL, prompt=TINY)


@pytest.mark.parametrize(("resampler", "ess_below"), [(systematic, 0.7), (multinomial, 0.5)])
def test_three_particles_are_unbiased(resampler, ess_below):
    strategy = ParticleFilter(num=3, resampler=resampler, step_tokens=1, ess_below=ess_below, sampling=COOL, pick=drawn)
    laws.law_weights_are_proper(strategy, exact_weight(log_odds), COOL, prompt=TINY)


@pytest.mark.parametrize("potential", (log_odds, log_prob))
def test_particle_filter_is_unbiased_over_longer_steps(potential):
    strategy = ParticleFilter(num=2, resampler=systematic, potential=potential, until=("a",), ess_below=0.95, sampling=COOL, pick=drawn)
    laws.law_weights_are_proper(strategy, exact_weight(potential), COOL)


def test_particle_filter_is_unbiased_when_it_always_resamples():
    strategy = ParticleFilter(num=2, resampler=systematic, step_tokens=2, until=(), ess_below=None, sampling=COOL, pick=drawn)
    laws.law_weights_are_proper(strategy, exact_weight(log_odds), COOL)


def test_corrected_particle_filter_aims_at_the_model():
    strategy = ParticleFilter(num=2, resampler=systematic, until=("b",), ess_below=0.95, sampling=COOL, is_corrected=True, pick=drawn)
    weight = exact_weight(log_odds)
    laws.law_weights_are_proper(strategy, lambda prefix: weight(prefix) + prefix.log_p - prefix.log_q, COOL)


def test_full_particle_filter_counts_every_step():
    strategy = ParticleFilter(
        num=2, resampler=systematic, verifier=Counting("b"), step_tokens=1, until=(), twist="full", ess_below=0.8, sampling=COOL, pick=drawn
    )  # fmt: skip

    def weight(prefix):
        texts = [prefix.text[: i + 1] for i in range(len(prefix.tokens))]
        return sum(float(t.count("b")) for t in texts)

    laws.law_weights_are_proper(strategy, weight, COOL)


def test_particle_filter_in_one_step_is_self_normalised_importance_sampling():
    one = ParticleFilter(num=5, resampler=systematic, step_tokens=100, pick=vote, sampling=COOL)
    outcome = played(one).result
    odds = [math.exp(log_odds(Verdict(math.exp(c.mean_log_p), "probability"))) for c in outcome.candidates]
    assert outcome.diagnostics["weights"] == pytest.approx([x / sum(odds) for x in odds], abs=1e-12)
    assert outcome.diagnostics["log_evidence"] == pytest.approx(math.log(sum(odds) / 5), abs=1e-12)


def test_particle_filter_costs_about_as_many_tokens_as_plain_answers():
    prompt = Prompt(messages=(("raw", "q"),), max_tokens=30)
    num_made = sum(played(ParticleFilter(num=8, resampler=systematic, until=("a",)), prompt, key=k).cost.generated_tokens for k in range(30))
    num_plain = sum(played(Sample(num=8, sampling=Sampling(temperature=0.8)), prompt, key=k).cost.generated_tokens for k in range(30))
    assert 0.7 < num_made / num_plain < 1.5


def test_every_strategy_that_samples_shares_its_samples():
    sampling = Sampling(temperature=0.8)
    drawers = (Sample(num=4, sampling=sampling), BestOfN(num=4, verifier=FLUENT, sampling=sampling), SelfConsistency(num=4, sampling=sampling))
    drawn_by = [{(c.tokens, c.text) for c in played(s).result.candidates} for s in drawers]
    assert drawn_by[0] == drawn_by[1] == drawn_by[2]
    fewer = played(Sample(num=2, sampling=sampling)).result.candidates
    assert fewer == played(Sample(num=4, sampling=sampling)).result.candidates[:2]


def test_greedy_takes_the_likeliest_token():
    (only,) = played(Greedy(), PROMPT).result.candidates
    prefix = next(p for p in LM.completions(PROMPT, Sampling(temperature=0.0)))
    assert only.tokens == prefix.tokens and only.log_p == pytest.approx(prefix.log_p, abs=1e-12)


@pytest.mark.parametrize("power", (0.0, 1.0))
@pytest.mark.parametrize("make", (lambda n, p: Beam(width=n, length_power=p), lambda n, p: DiverseBeam(width=n, num_groups=1, length_power=p)))
def test_a_wide_beam_finds_the_best(make, power):
    best = max(LM.completions(PROMPT), key=lambda p: normalized_score(p, power))
    found = played(make(30, power), PROMPT).result.candidates[0]
    assert found.tokens == best.tokens and found.score == pytest.approx(normalized_score(best, power), abs=1e-12)


@pytest.mark.parametrize("width", (1, 2, 3))
def test_one_group_is_beam(width):
    beam, diverse = Beam(width=width), DiverseBeam(width=width, num_groups=1)
    assert played(beam).result.candidates[:width] == played(diverse).result.candidates[:width]


@pytest.mark.parametrize("strategy", (Beam(width=4), DiverseBeam(width=4), DiverseBeam(width=4, num_groups=2)))
def test_beams_hold_no_copies(strategy):
    laws.law_candidates_are_distinct(strategy)


def test_groups_avoid_each_other():
    lm_texts = [[c.text for c in played(s).result.candidates[:4]] for s in (Beam(width=4), DiverseBeam(width=4, diversity=5.0))]
    beam, diverse = (laws.distinct_n(texts, 2) for texts in lm_texts)
    assert diverse >= beam
    first = {c.tokens[0] for c in played(DiverseBeam(width=3, num_groups=3, diversity=50.0), PROMPT).result.candidates}
    assert len(first) == 3


class Fractions:
    """Reads the last word; equal when equal as numbers."""

    def read(self, text):
        words = text.split()
        return words[-1] if words and words[-1][0].isdigit() else None

    def same(self, a, b):
        return Fraction(a) == Fraction(b)


NUMBERS = Prompt(messages=(("user", "how much?"),), answers=Fractions())


def by_vote(prompt, candidates):
    return voted(candidates, one_each(candidates), prompt).candidates[0]


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (("is 1/2", "that makes 0.5", "so 2", "gives 3"), "1/2"),
        (("the answer is 10", "the answer is 100", "well, I get 7", "plainly 7"), "7"),
        (("I do not know", "no idea", "who knows", "it is 4"), "4"),
    ],
)
def test_votes_go_by_meaning(texts, wanted):
    laws.law_answers_by_meaning(by_vote, NUMBERS, texts, wanted)


def told(text, *, log_p=-1.0, finish="stop", tokens=(0, 1), value=None, kind="probability"):
    verdicts = () if value is None else (Verdict(value, kind),)
    return Candidate(text, Fractions().read(text), tokens, log_p=log_p, finish=finish, verdicts=verdicts)


def test_vote_reports_ties_and_abstentions():
    outcome = voted([told("1", log_p=-3.0), told("2", log_p=-1.0), told("none")], [1.0, 1.0, 1.0], NUMBERS)
    assert outcome.candidates[0].answer == "2" and outcome.confidence == 0.5
    assert outcome.diagnostics == {"shares": {"2": 0.5, "1": 0.5}, "num_voters": 2, "num_abstained": 1, "num_tied": 2}


def test_cut_off_answers_vote_only_when_alone():
    cut = [told("1", finish="budget"), told("1", finish="budget")]
    assert voted([*cut, told("12")], [1.0] * 3, NUMBERS).candidates[0].answer == "12"
    assert voted(cut, [1.0] * 2, NUMBERS).confidence == 1.0


def test_nobody_votes():
    outcome = voted([told("a", log_p=-4.0), told("b", log_p=-1.0)], [1.0, 1.0], NUMBERS)
    assert outcome.candidates[0].text == "b" and outcome.confidence is None and outcome.diagnostics["num_tied"] == 0


def test_path_probability_counts_a_path_once():
    paths = [
        told("1", tokens=(1,), log_p=-1.0),
        told("1", tokens=(1,), log_p=-1.0),
        told("2", tokens=(2,), log_p=-1.2),
        told("2", tokens=(3,), log_p=-3.0),
    ]
    assert by_path_probability(paths) == [1.0, 0.0, pytest.approx(math.exp(-0.2)), pytest.approx(math.exp(-2.0))]
    assert voted(paths, by_path_probability(paths), NUMBERS).candidates[0].answer == "1"


def test_path_probability_of_all_paths_is_the_answers_probability():
    everything = [Candidate(p.text, p.text[:1] or None, p.tokens, p.log_p, finish=p.finish) for p in LM.completions(PROMPT)]
    outcome = voted(everything * 2, by_path_probability(everything * 2), PROMPT)
    mass = {c: math.fsum(math.exp(x.log_p) for x in everything if x.answer == c) for c in "ab"}
    wanted = {c: m / sum(mass.values()) for c, m in mass.items()}
    assert outcome.diagnostics["shares"] == pytest.approx(wanted, abs=1e-12)


def test_verdicts_weigh_by_their_kind():
    assert by_verdict([told("1", value=0.25), told("2"), told("3", value=0.5)]) == [0.25, 0.0, 0.5]
    assert by_verdict([told("1", value=-3.0, kind="log_p"), told("2", value=-2.0, kind="log_p")]) == [pytest.approx(math.exp(-1)), 1.0]
    assert by_verdict([told("1", value=-9.0, kind="score"), told("2", value=7.0, kind="score"), told("3", value=7.0, kind="score")]) == [
        pytest.approx(1 / 3), pytest.approx(2.5 / 3), pytest.approx(2.5 / 3),
    ]  # fmt: skip


def test_weighted_vote_can_overrule_the_majority():
    votes = [told("1", value=0.2), told("1", value=0.2), told("2", value=0.9)]
    assert voted(votes, by_verdict(votes), NUMBERS).candidates[0].answer == "2"


def test_best_of_n_ranks_abstentions_last_and_counts_ties():
    outcome = played(BestOfN(num=6, verifier=Counting("a", abstain_on="b")), LONG).result
    scores = [c.score for c in outcome.candidates]
    known = [s for s in scores if s is not None]
    assert scores == sorted(known, reverse=True) + [None] * (len(scores) - len(known))
    assert outcome.diagnostics == {"num_abstained": len(scores) - len(known), "num_tied": known.count(known[0]) if known else 6}


def test_verifier_that_asks_is_paid_for():
    assert played(BestOfN(num=3, verifier=Seeing("a"))).cost.verifier_tokens > 0


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda f: f.__name__)
def test_the_resampler_that_is_given_is_used(resampler):
    laws.law_uses_its_resampler(lambda spy: ParticleFilter(num=3, resampler=spy, step_tokens=1, ess_below=None), resampler)


def test_impossible_tokens_are_no_children():
    lm = ToyLM("ab", ((0.5, 0.5, 0.0), (0.0, 0.0, 1.0), (0.5, 0.0, 0.5)))
    found = answer_all(Beam(width=4).run(PROMPT, TorchRng(0)), ToyProcess(lm)).result.candidates
    assert all(c.log_p > -math.inf for c in found) and found[0].text in ("a", "ba", "b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sample(num=0),
        lambda: BestOfN(num=0, verifier=FLUENT),
        lambda: SelfConsistency(num=0),
        lambda: SelfConsistency(num=2, verifier=FLUENT, weigh=one_each),
        lambda: SelfConsistency(num=2, weigh=by_verdict),
        lambda: Beam(width=0),
        lambda: DiverseBeam(width=4, num_groups=3),
        lambda: DiverseBeam(diversity=-1.0),
        lambda: ParticleFilter(num=0, resampler=systematic),
        lambda: ParticleFilter(num=2, resampler=systematic, until=()),
        lambda: ParticleFilter(num=2, resampler=systematic, ess_below=2.0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadField):
        make()


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Sample(num=3)])
def test_direct_strategies_answer_with_their_first_text(strategy):
    laws.law_direct_is_what_it_first_asked_for(strategy)


class HastySelection(BestOfN):
    """Shows its first draw while it grows, and answers with another."""

    is_direct = True


def test_a_strategy_that_revises_cannot_say_that_it_is_direct():
    for wrong in (HastySelection(num=4, verifier=FLUENT), SelfConsistency(num=2)):
        with pytest.raises(AssertionError, match=r"direct|first drew"):
            laws.law_direct_is_what_it_first_asked_for(wrong)
