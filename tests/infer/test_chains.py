"""Markov chains over whole answers: stationary, reversible, and with the distribution that their sweeps say, by enumeration."""

import math

import pytest

from infer.chains import COOL, COUNTS, HALF, ONE, TINY, moving, stepping, trails_of
from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.infer.conditional import Sweep, drawn_trail
from ponder.infer.ops import log_prob
from ponder.infer.particle_gibbs import ParticleGibbs
from ponder.infer.picks import drawn
from ponder.testing import laws_chain, laws_strategy
from ponder.testing.exact import difference, normalised
from ponder.testing.laws_strategy import LM, PROMPT, enumerated, played
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess
from ponder.testing.verifiers import Abstaining, Counting

SWEEPS = {
    "full": (Sweep(num=2, step=stepping(is_ratio=False)), TINY, LM),
    "three steps": (Sweep(num=2, step=stepping(is_ratio=False)), PROMPT, ONE),
    "ratio": (Sweep(num=2, step=stepping()), TINY, LM),
    "tempered": (Sweep(num=2, step=stepping(is_ratio=False), power=0.5), TINY, LM),
    "without potential": (Sweep(num=2, step=stepping(is_ratio=False), power=0.0), TINY, LM),
    "resampled seldom": (Sweep(num=2, step=stepping(is_ratio=False), ess_below=0.9), TINY, LM),
    "corrected": (Sweep(num=2, step=stepping(is_corrected=True)), TINY, LM),
    "longer steps": (Sweep(num=2, step=stepping(tokens=None, until=("a",), potential=log_prob)), TINY, LM),
    "silent verifier": (Sweep(num=2, step=stepping(verifier=Abstaining())), TINY, LM),
    "three": (Sweep(num=3, step=stepping(is_ratio=False)), TINY, ONE),
    "three, resampled seldom": (Sweep(num=3, step=stepping(is_ratio=False), ess_below=0.8), TINY, ONE),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_keeps_its_target(name):
    sweep, prompt, lm = SWEEPS[name]
    laws_chain.law_chain_keeps(trails_of(sweep, prompt, lm), moving(sweep, prompt, lm), is_reversible=True)


def test_the_target_is_what_the_card_says():
    weight = lambda p: math.exp(p.log_q + sum(float(p.text[: i + 1].count("b")) for i in range(len(p.tokens))))
    target = trails_of(Sweep(num=2, step=stepping(verifier=Counting("b"), is_ratio=False)), PROMPT)
    wanted = {p.tokens: weight(p) for p in LM.completions(PROMPT, COOL)}
    assert difference({t.prefix.tokens: mass for t, mass in target.items()}, wanted) <= 1e-12


def gibbs(**changes) -> ParticleGibbs:
    settings = {"num": 2, "num_sweeps": 2, "verifier": COUNTS, "twist": "full", "until": (), "step_tokens": 1, "sampling": COOL, "pick": drawn}
    return ParticleGibbs(**settings | changes)


def test_one_sweep_is_the_particle_filter():
    strategy = gibbs(num_sweeps=1, verifier=Counting("b"))
    laws_strategy.law_weights_are_proper(strategy, lambda p: sum(float(p.text[: i + 1].count("b")) for i in range(len(p.tokens))), COOL, prompt=TINY)


def test_each_sweep_is_one_step_of_the_chain():
    """Law of the answer after T sweeps = (law after the first) K^(T-1): so it comes closer to the target at the rate of K."""
    strategy = gibbs(burn_in=0)
    rows = laws_chain.matrix(trails_of(strategy.sweep(), HALF), moving(strategy.sweep(), HALF))
    by_tokens = {x.prefix.tokens: {y.prefix.tokens: p for y, p in row.items()} for x, row in rows.items()}
    pi = normalised({x.prefix.tokens: mass for x, mass in trails_of(strategy.sweep(), HALF).items()})
    answer = lambda num: enumerated(gibbs(num_sweeps=num, burn_in=num - 1), lambda o: {o.candidates[0].tokens: 1.0}, prompt=HALF).measure
    law, off = answer(1), []
    for num in (2, 3):
        off.append(difference(law, pi))
        law = laws_chain.moved(law, by_tokens)
        assert difference(answer(num), law) <= 1e-12
    assert off[1] < 0.7 * off[0] and difference(law, pi) < 0.7 * off[1]


def test_many_particles_on_long_answers_pass_the_rank_test():
    """31 answers of four steps, five particles: far too many random paths to enumerate."""
    prompt = Prompt(messages=PROMPT.messages, max_tokens=4)
    sweep = Sweep(num=5, step=stepping(is_ratio=False))
    target = normalised(trails_of(sweep, prompt))
    assert len(target) == 31
    points = list(target)
    log_pi = laws_chain.torch.tensor([target[x] for x in points]).log()[None]
    draw = lambda rng: points[int(rng.categorical(log_pi)[0])]

    def move(trail, rng):
        return drawn_trail(answer_all(sweep.run(prompt, trail, rng), ToyProcess(LM)).result, rng)

    laws_chain.law_ranks_are_uniform(draw, move, lambda trail: trail.score, length=4, num=40)


def test_more_sweeps_are_pooled_and_told():
    told = played(gibbs(num=4, num_sweeps=4, pick=drawn)).result
    assert len(told.candidates) == 16 and sum(told.diagnostics["weights"]) == pytest.approx(1)
    assert told.diagnostics["num_sweeps"] == 4 and 0 <= told.diagnostics["num_moved"] <= 3
    assert len(played(gibbs(num=4, num_sweeps=4, burn_in=3)).result.candidates) == 4


def test_the_budget_ends_between_sweeps():
    """What a cut sweep left behind does not count: its weights are not those of whole answers."""
    whole = played(gibbs(num=3, num_sweeps=3))
    num_turns = len(played(gibbs(num=3, num_sweeps=1)).turns)
    cut = played(gibbs(num=3, num_sweeps=3), spent_after=num_turns + 1)
    assert cut.result.diagnostics["num_sweeps"] == 1 < whole.result.diagnostics["num_sweeps"]
    assert all(c.finish != "budget" for c in cut.result.candidates)


@pytest.mark.parametrize(
    "changes",
    [{"num": 1}, {"num_sweeps": 0}, {"burn_in": 2}, {"twist": "half"}, {"step_tokens": None}, {"ess_below": 2.0}],
    ids=lambda c: next(iter(c)),
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(BadField, match=next(iter(changes))):
        played(gibbs(**changes))
