"""Extend.forced: tokens that are taken instead of drawn have the probabilities that they would have had, on every process."""

import math

import pytest

from ponder.core.asks import Extend, Prefix, Prompt, Sampling
from ponder.core.rng import TorchRng
from ponder.engine.sampler import Draw, draw
from ponder.run.codec import ask_json
from ponder.testing.denoiser import Denoiser
from ponder.testing.laws_strategy import LM, LONG
from ponder.testing.numbers import NumberProcess
from ponder.testing.run import answer_turn
from ponder.testing.toy import ToyProcess

NUMBERS = Denoiser(means=((1.0,), (-1.0,)), shares=(0.4, 0.6), num_steps=3)
PROCESSES = {"words": (lambda: ToyProcess(LM), LONG), "numbers": (lambda: NumberProcess(NUMBERS), Prompt(messages=LONG.messages))}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampling", (Sampling(), Sampling(temperature=0.6)), ids=("plain", "cool"))
def test_what_was_drawn_can_be_forced(process, sampling):
    make, prompt = PROCESSES[process]
    drawn = [a.prefix for a in answer_turn([Extend(prefix=Prefix(prompt), seed=s, sampling=sampling) for s in range(6)], make())]
    again = [Extend(prefix=Prefix(prompt), seed=99 + i, sampling=sampling, forced=p.tokens) for i, p in enumerate(drawn)]
    assert [a.prefix for a in answer_turn(again, make())] == drawn
    (half,) = answer_turn([Extend(prefix=Prefix(prompt), seed=0, sampling=sampling, forced=drawn[1].tokens[:2], max_tokens=2)], make())
    (rest,) = answer_turn([Extend(prefix=half.prefix, seed=5, sampling=sampling, forced=drawn[1].tokens)], make())
    assert rest.prefix == drawn[1]


def test_after_the_forced_tokens_it_draws_on():
    asks = [Extend(prefix=Prefix(LONG), seed=s, forced=(0, 1)) for s in range(8)]
    grown = [a.prefix.tokens for a in answer_turn(asks, ToyProcess(LM))]
    assert {t[:2] for t in grown} == {(0, 1)} and len({t[2:] for t in grown}) > 3


def test_the_engine_forces_alike():
    """log_p of the model, log_q of the shaped distribution; impossible draws have log_q -inf, greedy ones 0."""
    logits = TorchRng(0).uniform([[]] * 200).log().reshape(1, 200).float()
    for sampling in (Sampling(), Sampling(temperature=0.7), Sampling(top_k=20)):
        (drawn,) = draw(logits, [Draw(3, 4, sampling)])
        (forced,) = draw(logits, [Draw(8, 4, sampling, forced=drawn.token)])
        assert (
            forced.token == drawn.token
            and forced.log_p == pytest.approx(drawn.log_p, abs=1e-6)
            and forced.log_q == pytest.approx(drawn.log_q, abs=1e-6)
        )
    best, worst = int(logits.argmax()), int(logits.argmin())
    told = draw(logits, [Draw(0, 0, Sampling(temperature=0.0), forced=t) for t in (best,)])
    assert (told[0].token, told[0].log_q) == (best, 0.0)
    for sampling in (Sampling(temperature=0.0), Sampling(top_k=5)):
        (told,) = draw(logits, [Draw(0, 0, sampling, forced=worst)])
        assert told.token == worst and told.log_q == -math.inf and math.isfinite(told.log_p)


def test_forced_is_part_of_the_key():
    plain = Extend(prefix=Prefix(LONG), seed=0)
    assert "forced" not in ask_json(plain) and ask_json(Extend(prefix=Prefix(LONG), seed=0, forced=(1,)))["forced"] == (1,)
