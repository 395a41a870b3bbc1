"""Markov chains over whole answers: stationary, reversible, and with the distribution that their sweeps say, by enumeration."""

import math

import pytest

from infer.chains import COOL, COUNTS, HALF, ONE, TINY, joint, moving, stepping, tempering, trails_of
from ponder.core.asks import Prompt
from ponder.core.errors import BadField
from ponder.infer.compose import together
from ponder.infer.conditional import Sweep, drawn_trail
from ponder.infer.ops import log_prob
from ponder.infer.parallel_tempering import exchanged
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


REWIRED = {
    "full": (Sweep(num=2, step=stepping(is_ratio=False), is_rewired=True), TINY, LM),
    "three steps, ratio": (Sweep(num=2, step=stepping(), is_rewired=True), PROMPT, ONE),
    "corrected, seldom resampled": (Sweep(num=2, step=stepping(is_corrected=True), is_rewired=True, ess_below=0.9), TINY, LM),
    "longer steps, tempered": (Sweep(num=2, step=stepping(tokens=None, until=("a",), is_ratio=False), is_rewired=True, power=0.5), TINY, LM),
}


@pytest.mark.parametrize("name", REWIRED)
def test_a_rewired_sweep_keeps_its_target(name):
    sweep, prompt, lm = REWIRED[name]
    laws_chain.law_chain_keeps(trails_of(sweep, prompt, lm), moving(sweep, prompt, lm))


def test_rewiring_moves_the_past_of_long_answers():
    """Where all descend from the reference, ancestor sampling still changes its first token."""
    prompt = Prompt(messages=PROMPT.messages, max_tokens=8)
    num_moved = lambda rewired, key: played(gibbs(num=2, num_sweeps=8, is_rewired=rewired), prompt, key=key).result.diagnostics["num_moved"]
    kept, rewired = (sum(num_moved(way, key) for key in range(6)) for way in (False, True))
    assert rewired > kept


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


def exchanging(powers, exchange=exchanged):
    return lambda trails, rng: tuple(exchange(trails, powers, 0, rng)[0])


def sweeping(sweeps, prompt, lm=LM, process=lambda lm, rng: ToyProcess(lm, rng)):
    def move(trails, rng):
        running = together([sweep.run(prompt, x, rng.fork(k)) for k, (sweep, x) in enumerate(zip(sweeps, trails))])
        return tuple(drawn_trail(particles, rng) for particles in answer_all(running, process(lm, rng)).result)

    return move


def test_an_exchange_keeps_the_product_of_all_targets():
    sweeps = tempering().sweeps()
    laws_chain.law_chain_keeps(joint(sweeps, TINY, LM), exchanging([s.power for s in sweeps]), is_reversible=True)


def test_a_round_keeps_the_product_of_all_targets():
    sweeps = tempering().sweeps()
    exchange, sweep = exchanging([s.power for s in sweeps]), sweeping(sweeps, TINY, ONE)
    laws_chain.law_chain_keeps(joint(sweeps, TINY, ONE), lambda trails, rng: sweep(exchange(trails, rng), rng))


def test_rounds_of_three_chains_pass_the_rank_test():
    """Six answers of five steps in each of three chains; forwards exchange and sweep, backwards sweep and exchange."""
    prompt = Prompt(messages=PROMPT.messages, max_tokens=5)
    sweeps = tempering(num=3, num_chains=3).sweeps()
    exchange, sweep = exchanging([s.power for s in sweeps]), sweeping(sweeps, prompt, ONE, lambda lm, rng: ToyProcess(lm))
    targets = [normalised(trails_of(s, prompt, ONE)) for s in sweeps]
    draw = lambda rng: tuple(list(t)[int(rng.categorical(laws_chain.torch.tensor(list(t.values())).log()[None])[0])] for t in targets)
    forth, back = lambda x, rng: sweep(exchange(x, rng), rng), lambda x, rng: exchange(sweep(x, rng), rng)
    laws_chain.law_ranks_are_uniform(draw, forth, lambda x: x[0].score - x[2].score, back=back, length=4, num=24)


def test_one_chain_is_particle_gibbs():
    """Draw for draw, but for the seeds: the same law after two sweeps."""
    answer = lambda strategy: enumerated(strategy, lambda o: {o.candidates[0].tokens: 1.0}, LM, HALF).measure
    assert difference(answer(tempering(num_chains=1, num_rounds=2, burn_in=1)), answer(gibbs(burn_in=1))) <= 1e-12


def test_hot_chains_take_the_verifier_less_seriously():
    cold, hot = (normalised(trails_of(s, TINY)) for s in tempering(ladder=100.0).sweeps())
    plain = {p.tokens: math.exp(p.log_q) for p in LM.completions(TINY, COOL)}
    off = lambda target: difference({x.prefix.tokens: m for x, m in target.items()}, plain)
    assert off(hot) < 0.02 < 0.1 < off(cold)


def test_exchanges_are_counted_and_the_chains_share_their_turns():
    done = played(tempering(num_chains=4, num_rounds=5))
    assert done.result.diagnostics["num_tried"] == 2 + 1 + 2 + 1 and 0 < done.result.diagnostics["num_exchanged"] <= 6
    assert len(done.turns) < 2 * len(played(tempering(num_chains=1, num_rounds=5)).turns)


@pytest.mark.parametrize("changes", [{"num": 1}, {"num_chains": 0}, {"ladder": 1.0}, {"num_rounds": 0}, {"burn_in": 3}], ids=lambda c: next(iter(c)))
def test_bad_tempering_is_refused(changes):
    with pytest.raises(BadField, match=next(iter(changes))):
        tempering(**changes)
