"""Probabilistic programs: posterior and normaliser of any program by enumeration, over choices and over a language model's words."""

import math
from dataclasses import replace

import pytest
import torch

from ponder.core.asks import Extend, Extension, Prefix, Prompt
from ponder.core.errors import BadField
from ponder.core.rng import TorchRng
from ponder.infer.compose import While
from ponder.infer.ops import Advance, Resample, Spawn, start
from ponder.infer.program import Draw, Execution, Observe, ProgramStep, is_open, replayed, smc
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.residual import residual
from ponder.infer.resample.systematic import systematic
from ponder.testing.exact import added, difference, expected_measure, returned
from ponder.testing.hmm import SMALL
from ponder.testing.laws_strategy import LM
from ponder.testing.run import answer_all
from ponder.testing.toy import ToyProcess

SHORT = replace(SMALL, emission=SMALL.emission[:2])
FAIR = (math.log(0.5), math.log(0.5))


def branching():
    """How often it draws and observes depends on what was drawn."""
    num = 0
    while num < 2 and (yield Draw((math.log(0.3), math.log(0.7)))):
        num += 1
        yield Observe(math.log((0.9, 0.4)[num - 1]))
    if num == 2 and (yield Draw(FAIR)):
        return "lucky"
    yield Observe(math.log((0.2, 0.5, 0.8)[num]))
    return num


def ruled_out():
    first, second = (yield Draw(FAIR)), (yield Draw(FAIR))
    yield Observe(0.0 if first != second else -math.inf)
    return first, second


def hidden_markov():
    path = ()
    for likelihood in SHORT.emission:
        path = (*path, (yield Draw(tuple(map(math.log, SHORT.prior(path))))))
        yield Observe(math.log(likelihood[path[-1]]))
    return path


def every_execution(program, replies=(), mass=1.0):
    """(value, mass) of every execution: the obvious reference, by trying all draws."""
    try:
        step = replayed(program(), replies)
    except BadField:
        return
    if isinstance(step, Observe):
        choices = [(None, math.exp(step.log_w))]
    else:
        total = math.fsum(map(math.exp, step.log_p))
        choices = [(i, math.exp(x) / total) for i, x in enumerate(step.log_p)]
    for reply, share in choices:
        running = program()
        try:
            replayed(running, replies)
            running.send(reply)
        except StopIteration as stop:
            yield stop.value, mass * share
            continue
        yield from every_execution(program, (*replies, reply), mass * share)


def measure(program):
    wanted = {}
    for value, mass in every_execution(program):
        added(wanted, value, mass)
    return wanted


def law_programs_are_exact(make, program):
    """Expected weighted particles are the program's measure, normaliser included."""
    found = expected_measure(lambda rng: returned(make(program).run(start(Execution()), rng)), lambda item: item.value)
    assert difference(found.measure, measure(program)) <= 1e-12


PROGRAMS = {"branching": branching, "ruled out": ruled_out, "hidden Markov": hidden_markov}


@pytest.mark.parametrize("ess_below", (None, 0.7, 0.0))
@pytest.mark.parametrize("resampler", (multinomial, residual, systematic))
@pytest.mark.parametrize("name", PROGRAMS)
def test_particles_have_the_measure_of_the_program(name, resampler, ess_below):
    law_programs_are_exact(lambda program: smc(program, 2, resampler, ess_below), PROGRAMS[name])


def test_the_reference_has_the_forward_recursion_s_evidence():
    assert math.fsum(measure(hidden_markov).values()) == pytest.approx(SHORT.evidence(), abs=1e-15)
    assert difference(measure(hidden_markov), SHORT.posterior()) <= 1e-15


class Rescoring(ProgramStep):
    """Wrong: weighs again on every replay what was observed before."""

    def __call__(self, state, rng):
        grown, log_g = yield from super().__call__(state, rng)
        for i, item in enumerate(state):
            for num in range(0 if item.is_done else len(item.replies)):
                step = replayed(self.program(), item.replies[:num])
                log_g[i] += step.log_w if isinstance(step, Observe) else 0.0
        return grown, log_g


class Hasty(ProgramStep):
    """Wrong: what is observed last is lost when the program ends right behind it."""

    def __call__(self, state, rng):
        grown, log_g = yield from super().__call__(state, rng)
        return grown, torch.tensor([0.0 if x.is_done else float(w) for x, w in zip(grown, log_g)], dtype=torch.float64)


@pytest.mark.parametrize("wrong", (Rescoring, Hasty))
def test_wrong_replays_are_caught(wrong):
    make = lambda program: Spawn(2) >> While(Resample(systematic, None) >> Advance(wrong(program)), is_open)
    with pytest.raises(AssertionError):
        law_programs_are_exact(make, branching)


PROMPT = Prompt(messages=(("raw", "q"),), max_tokens=2)


def fond_of_b():
    """Goes on word by word, and likes each "b" by one nat."""
    prefix = Prefix(PROMPT)
    while not prefix.is_final:
        told = yield Extend(prefix=prefix, seed=0, max_tokens=1)
        assert isinstance(told, Extension)
        yield Observe(float(told.prefix.text.count("b") - prefix.text.count("b")))
        prefix = told.prefix
    return prefix.tokens


@pytest.mark.parametrize("resampler", (multinomial, systematic))
def test_a_program_over_words_aims_at_its_posterior(resampler):
    wanted = {p.tokens: math.exp(p.log_p + p.text.count("b")) for p in LM.completions(PROMPT)}
    run = lambda rng: answer_all(smc(fond_of_b, 2, resampler, 0.9).run(start(Execution()), rng), ToyProcess(LM, rng)).result
    assert difference(expected_measure(run, lambda item: item.value).measure, wanted) <= 1e-12


def test_all_particles_ask_in_one_turn():
    done = answer_all(smc(fond_of_b, 5, systematic).run(start(Execution()), TorchRng(0)), ToyProcess(LM))
    assert len(done.turns[0].asks) == 5 and len({ask.seed for ask in done.turns[0].asks}) == 5
    assert all(x.is_done for x in done.result.state) and torch.isfinite(done.result.log_w).all()


def test_nonsense_is_refused():
    for log_p in ((), (-math.inf,), (math.nan, 0.0)):
        with pytest.raises(BadField):
            Draw(log_p)
    with pytest.raises(BadField, match="pure function"):
        replayed((x for x in ()), ())
