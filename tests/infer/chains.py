"""The chains that the tests and the museum move: sweeps on a toy model, with their targets by enumeration."""

import itertools
import math
from dataclasses import replace

from ponder.core.asks import Prompt, Sampling
from ponder.core.rng import enumerate_paths
from ponder.infer.conditional import Sweep, drawn_trail
from ponder.infer.ops import ExtendStep, JudgedStep, log_odds
from ponder.infer.parallel_tempering import ParallelTempering
from ponder.infer.picks import drawn
from ponder.testing.laws_strategy import LM, PROMPT
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess, toy_lm
from ponder.testing.verifiers import Counting

COOL = Sampling(temperature=0.7)
TINY = Prompt(messages=PROMPT.messages, max_tokens=2)
HALF = Prompt(messages=PROMPT.messages, max_tokens=1)
COUNTS = Counting("b", abstain_on="aa")
ONE = toy_lm("b", seed=3)  # two tokens only: three particles stay enumerable


def stepping(*, is_ratio=True, verifier=COUNTS, potential=log_odds, tokens=1, is_corrected=False, until=()) -> JudgedStep:
    extend = ExtendStep(until=until, max_tokens=tokens, sampling=COOL, is_corrected=is_corrected)
    return JudgedStep(extend=extend, verifier=verifier, potential=potential, is_ratio=is_ratio)


def trails_of(sweep: Sweep, prompt: Prompt, lm=LM) -> dict:
    """trail -> q(x) prod_t factor_t: every way to the end of one free particle, with its exact probability."""

    def one(rng):
        (trail,) = answer_all(replace(sweep, num=1).run(prompt, None, rng), ToyProcess(lm, rng)).result.state
        return trail

    found = {}
    for trail, chance in enumerate_paths(one):
        factor = math.exp(math.fsum(trail.log_factor(t, sweep.power) for t in range(trail.num_steps)))
        found[trail] = found.get(trail, 0.0) + chance * factor
    return found


def moving(sweep: Sweep, prompt: Prompt, lm=LM):
    def move(trail, rng):
        return drawn_trail(answer_all(sweep.run(prompt, trail, rng), ToyProcess(lm, rng)).result, rng)

    return move


def tempering(**changes) -> ParallelTempering:
    settings = {"num": 2, "num_chains": 2, "ladder": 2.5, "verifier": COUNTS, "twist": "full", "until": (), "step_tokens": 1, "sampling": COOL}
    return ParallelTempering(**settings | {"pick": drawn} | changes)


def joint(sweeps, prompt: Prompt, lm) -> dict:
    """(x_0, ..) -> prod_k pi_k(x_k), unnormalised."""
    targets = [trails_of(sweep, prompt, lm) for sweep in sweeps]
    return {xs: math.prod(t[x] for t, x in zip(targets, xs)) for xs in itertools.product(*targets)}
