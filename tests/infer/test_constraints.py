"""Strategies under a form, on a toy model: by enumeration, weights p / q aim at the model's own distribution given the form.

The oracle lists the answers of the model without any form and keeps those that are in it.
"""

import json
import math
from dataclasses import replace

import pytest

from ponder.core.asks import Choice, Expand, Extend, Grammar, Json, JsonSchema, Prefix, Prompt, Regex, Sampling, Score, candidate
from ponder.core.errors import BadField, StoreError
from ponder.infer.beam import Beam
from ponder.infer.best_of_n import BestOfN
from ponder.infer.diverse_beam import DiverseBeam
from ponder.infer.greedy import Greedy
from ponder.infer.ops import log_odds
from ponder.infer.particle_filter import MeanProbability, ParticleFilter
from ponder.infer.picks import drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.infer.sample import Sample
from ponder.infer.self_consistency import SelfConsistency
from ponder.run.codec import answer_from_json, answer_json, ask_json, dumps, prompt_json
from ponder.testing import laws_process, laws_strategy
from ponder.testing.exact import TOLERANCE, difference, normalised
from ponder.testing.laws_strategy import enumerated, played
from ponder.testing.run import answer_turn
from ponder.testing.toy import ToyLM, ToyProcess, toy_lm, transformed
from ponder.testing.verifiers import Abstaining

LM = toy_lm("ab", seed=1)
OPTIONS = ("a", "ab", "bba")  # "b" alone must go on, "a" may end, "ab" must end
PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=4, form=Choice(OPTIONS))
PROPOSALS = (
    Sampling(), Sampling(temperature=0.6), Sampling(temperature=2.0), Sampling(logit_bias=((0, 1.5), (2, -0.7))),
    Sampling(presence_penalty=0.8, frequency_penalty=-0.5, repetition_penalty=1.7),
)  # fmt: skip
FLUENT = MeanProbability()
STRATEGIES = {
    "greedy": Greedy(),
    "sample": Sample(num=6),
    "best_of_n": BestOfN(num=4, verifier=FLUENT),
    "vote": SelfConsistency(num=5),
    "beam": Beam(width=3),
    "diverse beam": DiverseBeam(width=4, num_groups=2),
    "particle filter": ParticleFilter(num=4, resampler=systematic, step_tokens=1),
}


def valid(prompt: Prompt = PROMPT, lm: ToyLM = LM) -> dict[tuple[int, ...], float]:
    """tokens -> p(tokens) 1[text in options], from the model that knows no form."""
    return {p.tokens: math.exp(p.log_p) for p in lm.completions(replace(prompt, form=None)) if p.finish == "stop" and p.text in prompt.form.options}


def filtering(sampling: Sampling = PROPOSALS[0], *, num: int = 2, resampler=systematic, ess_below: float | None = 0.95, is_corrected: bool = True):
    return ParticleFilter(
        num=num, resampler=resampler, verifier=Abstaining(), step_tokens=1, ess_below=ess_below, sampling=sampling, pick=drawn,
        is_corrected=is_corrected,
    )  # fmt: skip


def evidence_at_answer(outcome):
    return {outcome.candidates[0].tokens: math.exp(outcome.diagnostics["log_evidence"])}


def require_posterior(strategy, prompt: Prompt = PROMPT) -> None:
    """E[Z 1[answer = x]] = p(x) 1[x in form]: so E[Z] is the form's mass, and Z-weighted answers have the posterior."""
    found, wanted = enumerated(strategy, evidence_at_answer, LM, prompt), valid(prompt)
    assert difference(found.measure, wanted) <= TOLERANCE
    assert difference(normalised(found.measure), normalised(wanted)) <= TOLERANCE


def test_the_oracle_is_no_triviality():
    assert len(valid()) == 3 and 0.05 < math.fsum(valid().values()) < 0.5
    assert {p.tokens for p in LM.completions(PROMPT)} == set(valid())


@pytest.mark.parametrize("sampling", PROPOSALS)
def test_draws_are_from_the_model_restricted_and_normalised_again(sampling):
    ask = Extend(prefix=Prefix(PROMPT), seed=3, sampling=sampling)
    found = enumerated(Sample(num=1, sampling=sampling), lambda o: {o.candidates[0].tokens: 1.0}, LM, PROMPT)
    exact = {p.tokens: math.exp(p.log_q) for p in LM.completions(PROMPT, sampling)}
    assert difference(found.measure, exact) <= TOLERANCE and math.fsum(exact.values()) == pytest.approx(1, abs=TOLERANCE)
    (answer,) = answer_turn([ask], ToyProcess(LM))
    assert exact[answer.prefix.tokens] == pytest.approx(math.exp(answer.prefix.log_q), abs=TOLERANCE)
    assert valid()[answer.prefix.tokens] == pytest.approx(math.exp(answer.prefix.log_p), abs=TOLERANCE)


def test_plain_sampling_in_a_form_by_hand():
    first = [math.exp(x) for x in LM.row(None)]
    after_a = [math.exp(x) for x in LM.row(0)]
    exact = {p.tokens: math.exp(p.log_q) for p in LM.completions(PROMPT)}
    share = first[0] / (first[0] + first[1])
    assert exact[0, 2] == pytest.approx(share * after_a[2] / (after_a[1] + after_a[2]), abs=TOLERANCE)
    assert exact[1, 1, 0, 2] == pytest.approx(1 - share, abs=TOLERANCE)  # after "b" everything is forced


@pytest.mark.parametrize("sampling", PROPOSALS)
def test_importance_sampling_is_unbiased(sampling):
    weighted = lambda c: {c.tokens: math.exp(c.log_p - c.log_q)}
    found = enumerated(Sample(num=1, sampling=sampling), lambda o: weighted(o.candidates[0]), LM, PROMPT)
    assert difference(found.measure, valid()) <= TOLERANCE


@pytest.mark.parametrize("sampling", PROPOSALS)
@pytest.mark.parametrize("ess_below", (0.95, None))
def test_the_particle_filter_aims_at_the_model_given_the_form(sampling, ess_below):
    require_posterior(filtering(sampling, ess_below=ess_below))


@pytest.mark.parametrize("resampler", (multinomial, residual, stratified))
def test_whatever_the_resampler(resampler):
    require_posterior(filtering(resampler=resampler))


def test_with_three_particles_and_with_a_verifier():
    require_posterior(filtering(num=3), replace(PROMPT, max_tokens=3, form=Choice(("a", "ba"))))
    judged = replace(filtering(), verifier=FLUENT)
    found = enumerated(judged, evidence_at_answer, LM, PROMPT)
    weight = lambda x, p: math.exp(log_odds(FLUENT.judge(PROMPT, [candidate(Prefix(PROMPT, x, log_p=math.log(p)))], ())[0]))
    assert difference(found.measure, {x: p * weight(x, p) for x, p in valid().items()}) <= TOLERANCE


def test_weight_one_per_token_is_caught():
    """Locally constrained decoding: the law of the draws, which favours options that soon leave no choice."""
    found = enumerated(filtering(is_corrected=False), evidence_at_answer, LM, PROMPT)
    assert abs(found.normaliser - 1) <= TOLERANCE
    assert difference(normalised(found.measure), normalised(valid())) > 0.1
    with pytest.raises(AssertionError):
        require_posterior(filtering(is_corrected=False))
    with pytest.raises(AssertionError):
        require_posterior(filtering(Sampling(temperature=0.6), is_corrected=False))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_answers_in_the_form(name):
    for key in range(5):
        outcome = played(STRATEGIES[name], PROMPT, key=key)
        assert outcome.result.candidates
        for c in outcome.result.candidates:
            assert c.text in OPTIONS and c.finish == "stop" and c.tokens[-1] == LM.end
            laws_strategy.require_true_to_model(c, LM, PROMPT)


def test_a_wide_beam_finds_the_likeliest_answer_in_the_form():
    best = played(Beam(width=8, length_power=0.0), PROMPT).result.candidates
    wanted = sorted(valid().items(), key=lambda pair: -pair[1])
    assert [c.tokens for c in best] == [tokens for tokens, _ in wanted]
    assert [math.exp(c.log_p) for c in best] == pytest.approx([p for _, p in wanted], abs=TOLERANCE)


def test_children_are_those_that_the_form_allows():
    (told,) = answer_turn([Expand(prefix=Prefix(PROMPT), num=3)], ToyProcess(LM))
    assert {c.tokens for c in told.children} == {(0,), (1,)}
    (told,) = answer_turn([Expand(prefix=told.children[0] if told.children[0].tokens == (1,) else told.children[1], num=3)], ToyProcess(LM))
    assert [c.tokens for c in told.children] == [(1, 1)]
    assert told.children[0].log_p == pytest.approx(LM.row(None)[1] + LM.row(1)[1], abs=TOLERANCE)


def test_scores_do_not_know_the_form():
    asks = [Score(prefix=Prefix(p), options=("b", "abab")) for p in (PROMPT, replace(PROMPT, form=None))]
    formed, plain = answer_turn(asks, ToyProcess(LM))
    assert formed.log_p == plain.log_p


def test_a_length_that_cuts_the_form_short():
    short = replace(PROMPT, max_tokens=1)
    told = answer_turn([Extend(prefix=Prefix(short), seed=s) for s in range(40)], ToyProcess(LM))
    assert {t.finish for t in told} == {"length"} and {t.prefix.text for t in told} == {"a", "b"}


@pytest.mark.parametrize("law", [law for law in laws_process.LAWS if law is not laws_process.law_probabilities], ids=lambda f: f.__name__)
def test_process_laws_in_a_form(law):
    lm = toy_lm("abc", seed=3)
    prompt = Prompt(messages=(("raw", "ab"),), max_tokens=8, form=Choice(("abcabc", "abccba", "cabcab", "cba", "bbbb")))
    law(lambda: ToyProcess(lm), prompt, 0.0)


def test_what_is_refused():
    process = ToyProcess(LM)
    for ask, reason in (
        (Extend(prefix=Prefix(replace(PROMPT, form=Choice(("xyz",)))), seed=0), "no option"),
        (Extend(prefix=Prefix(PROMPT, (1, 0)), seed=0), "no option"),
        (Expand(prefix=Prefix(PROMPT, (0, 0)), num=1), "no option"),
        (Extend(prefix=Prefix(replace(PROMPT, form=Regex("a*"))), seed=0), "Choice alone"),
        (Extend(prefix=Prefix(PROMPT), seed=0, sampling=Sampling(logit_bias=((3, 1.0),))), "token 3"),
    ):
        with pytest.raises(BadField, match=reason):
            process.add(ask)
    assert not process.progress()
    for options in ((), "yes", ("",)):
        with pytest.raises(BadField, match="choice"):
            Choice(options)


def test_a_bias_changes_the_proposal_alone():
    biased = {p.tokens: p for p in LM.completions(replace(PROMPT, form=None), Sampling(logit_bias=((0, 2.0),)))}
    plain = {p.tokens: p for p in LM.completions(replace(PROMPT, form=None))}
    assert biased.keys() == plain.keys()
    assert all(biased[x].log_p == pytest.approx(plain[x].log_p, abs=TOLERANCE) for x in plain)
    odds = lambda p: math.exp(p.log_q)
    assert odds(biased[0, 2]) > odds(plain[0, 2])
    row = [math.exp(x) for x in transformed(LM.proposal(Prefix(PROMPT), Sampling(logit_bias=((0, 2.0),))), Sampling())]
    first = [math.exp(x) for x in LM.row(None)]
    assert row[0] / row[1] == pytest.approx(math.exp(2.0) * first[0] / first[1], rel=1e-12)


def test_log_probabilities_of_tokens_are_the_models_own():
    asks = [Extend(prefix=Prefix(PROMPT), seed=s, sampling=Sampling(temperature=0.3), logprobs=2) for s in range(4)]
    for told in answer_turn(asks, ToyProcess(LM)):
        assert [t.token for t in told.logprobs] == list(told.prefix.tokens)
        assert math.fsum(t.log_p for t in told.logprobs) == pytest.approx(told.prefix.log_p, abs=TOLERANCE)
        first = told.logprobs[0]
        assert first.top == tuple(sorted(enumerate(LM.row(None)), key=lambda pair: -pair[1])[:2])
    with pytest.raises(BadField, match="logprobs=-1"):
        Extend(prefix=Prefix(PROMPT), seed=0, logprobs=-1)


def test_what_is_kept_of_an_ask_and_its_answer():
    """Forms, biases and log-probabilities are part of the key; asks without them keep the key that they had before there were any."""
    plain = Extend(prefix=Prefix(replace(PROMPT, form=None)), seed=1, sampling=Sampling(temperature=0.5))
    assert set(prompt_json(plain.prefix.prompt)) == {"messages", "prefill", "stop", "max_tokens"}
    assert set(ask_json(plain)) == {"prompt", "tokens", "kind", "seed", "max_tokens", "until", "sampling", "certainty"}
    assert set(ask_json(plain)["sampling"]) == {"temperature", "top_k", "top_p", "min_p"}
    forms = (Choice(("a", "b")), Choice(("b", "a")), Regex("a"), Regex("b"), Grammar("a"), JsonSchema("{}"), Json())
    asks = [plain, replace(plain, logprobs=0), replace(plain, logprobs=1)]
    asks += [replace(plain, prefix=Prefix(replace(PROMPT, form=form))) for form in forms]
    asks += [replace(plain, sampling=replace(plain.sampling, **{name: 0.5})) for name in ("presence_penalty", "repetition_penalty")]
    asks += [replace(plain, sampling=replace(plain.sampling, logit_bias=((0, b),))) for b in (1.0, 2.0)]
    assert len({dumps(ask_json(ask)) for ask in asks}) == len(asks)
    ask = Extend(prefix=Prefix(PROMPT), seed=1, logprobs=2)
    (answer,) = answer_turn([ask], ToyProcess(LM))
    again = answer_from_json(ask, json.loads(dumps(answer_json(answer))))
    assert (again.prefix, again.finish, again.logprobs) == (answer.prefix, answer.finish, answer.logprobs) and len(again.logprobs) > 1
    damaged = answer_json(answer) | {"logprobs": [[1, 2]]}
    with pytest.raises(StoreError, match="does not fit"):
        answer_from_json(ask, damaged)
