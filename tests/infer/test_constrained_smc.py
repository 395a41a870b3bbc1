"""SMC under constraints: posterior and mass of all answers that fulfil them, by enumeration; no forbidden answer ever."""

import math
from dataclasses import dataclass, replace

import pytest

from infer.chains import COOL, ONE
from ponder.core.asks import Choice, Prompt, Sampling
from ponder.core.errors import BadField, DeadParticles
from ponder.core.guarantee import Guarantee
from ponder.infer.constrained_smc import ConstrainedSMC, With, Without
from ponder.infer.picks import argmax, drawn, vote
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.stratified import stratified
from ponder.infer.resample.systematic import systematic
from ponder.testing.exact import TOLERANCE, averaged, difference
from ponder.testing.laws_strategy import LM, PROMPT, played
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess

NONE_OF = Without(("ab", "bb"))
ALL_OF = With(("b",), bonus=0.7)
FORMED = Prompt(messages=PROMPT.messages, max_tokens=4, form=Choice(("a", "ab", "bba")))
TINY = Prompt(messages=PROMPT.messages, max_tokens=2)


def constrained(*constraints, **changes) -> ConstrainedSMC:
    settings = {"num": 2, "resampler": systematic, "step_tokens": 1, "ess_below": 0.95, "pick": drawn}
    return ConstrainedSMC(constraints=constraints, **settings | changes)


def fulfilling(prompt: Prompt, constraints, lm=LM) -> dict:
    """tokens -> p(x) 1[x in form] exp(sum phi), from the model that knows neither form nor constraints."""
    form = prompt.form
    every = lm.completions(replace(prompt, form=None))
    kept = [p for p in every if form is None or (p.finish == "stop" and p.text in form.options)]
    return {p.tokens: math.exp(p.log_p + math.fsum(c.whole(p.text) for c in constraints)) for p in kept}


def require_posterior(strategy: ConstrainedSMC, prompt: Prompt, lm=LM, honest=None) -> None:
    """E[Z 1[answer = x]]; a run in which all particles die has Z = 0. honest: what the constraints ought to be."""

    def program(rng):
        try:
            outcome = answer_all(strategy.run(prompt, rng), ToyProcess(lm, rng)).result
        except DeadParticles:
            return None
        return {outcome.candidates[0].tokens: math.exp(outcome.diagnostics["log_evidence"])}

    found = averaged(program, 200_000)
    assert difference(found.measure, fulfilling(prompt, honest or strategy.constraints, lm)) <= TOLERANCE


@pytest.mark.parametrize("constraints", [(), (NONE_OF, ALL_OF)], ids=("none", "both"))
@pytest.mark.parametrize("sampling", (COOL, Sampling(logit_bias=((0, 1.5),))), ids=("cool", "biased"))
def test_answers_have_the_models_probabilities_given_the_constraints(constraints, sampling):
    require_posterior(constrained(*constraints, sampling=sampling), TINY)
    require_posterior(constrained(*constraints, sampling=sampling), FORMED)


@pytest.mark.parametrize("resampler", (multinomial, residual, stratified, systematic))
def test_whatever_the_resampler(resampler):
    require_posterior(constrained(NONE_OF, ALL_OF, resampler=resampler, ess_below=None), TINY)


def test_over_longer_answers_and_steps():
    require_posterior(constrained(Without(("bbb",)), ALL_OF), PROMPT, ONE)
    require_posterior(constrained(ALL_OF, step_tokens=None, until=("a",), sampling=COOL), PROMPT)


@pytest.mark.parametrize("constraint", (NONE_OF, ALL_OF, Without(("a", "b")), With(("a", "bb"))))
def test_what_is_killed_could_not_be_saved(constraint):
    for whole in LM.completions(Prompt(messages=PROMPT.messages, max_tokens=5)):
        begun = [constraint.begun(whole.text[:i]) for i in range(len(whole.text) + 1)]
        assert -math.inf not in begun or constraint.whole(whole.text) == -math.inf
        assert begun[0] == 0.0


@dataclass(frozen=True)
class EndsInB(Without):
    """Kills beginnings that could still end well."""

    def begun(self, text):
        return 0.0 if not text or text.endswith("b") else -math.inf


@dataclass(frozen=True)
class KeepsItsBonus(With):
    """Never takes back what it gave on the way."""

    def whole(self, text):
        return super().whole(text) + self.begun(text)


@dataclass(frozen=True, kw_only=True)
class Uncorrected(ConstrainedSMC):
    """Weighs a masked proposal as if it were the model."""

    def rounds(self):
        right = super().rounds()
        resample, advance = right.op.ops
        step = replace(advance.kernel, extend=replace(advance.kernel.extend, is_corrected=False))
        return replace(right, op=resample >> replace(advance, kernel=step))


def test_wrong_constraints_and_weights_are_caught():
    for wrong, honest in ((EndsInB(("a",)), EndsInB(("a",))), (KeepsItsBonus(("b",)), With(("b",)))):
        with pytest.raises(AssertionError):
            require_posterior(constrained(wrong), TINY, honest=(honest,))
    with pytest.raises(AssertionError):
        require_posterior(Uncorrected(num=2, resampler=systematic, step_tokens=1, pick=drawn), FORMED)


@pytest.mark.parametrize("pick", (vote, argmax, drawn))
def test_nothing_forbidden_is_answered(pick):
    prompt = Prompt(messages=PROMPT.messages, max_tokens=8)
    for key in range(20):
        done = played(constrained(NONE_OF, With(("b",)), num=16, pick=pick), prompt, key=key)
        shown = [c for turn in done.turns for c in turn.best]
        assert all("ab" not in c.text and "bb" not in c.text for c in (*shown, *done.result.candidates))
        assert all("b" in c.text for c in done.result.candidates)


def test_when_nothing_can_fulfil_them_it_says_so():
    with pytest.raises(DeadParticles, match="all 4 particles"):
        played(constrained(Without(("a", "b")), With(("a",)), num=4))


def test_settings():
    assert constrained().guarantee == Guarantee.UNBIASED and constrained(pick=vote).guarantee == Guarantee.BIASED
    for make in (lambda: constrained(num=0), lambda: constrained(sampling=Sampling(top_k=2)), lambda: constrained(Without(("",)))):
        with pytest.raises(BadField):
            make()
