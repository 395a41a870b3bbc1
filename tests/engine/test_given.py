"""Asks that give the engine its tokens or its noise: what was drawn can be forced, and noise drifts from one draw to another."""

from dataclasses import replace

import pytest

from engine.tiny_models import tiny_decoder, tiny_process
from ponder.core.asks import Extend, Prefix, Regex, Sampling, chat
from ponder.core.errors import BadField
from ponder.testing.run import answer_turn

DECODER = tiny_decoder("qwen2")
PROMPT = chat("Say something.", max_tokens=12)


def prefixes(*asks):
    return [a.prefix for a in answer_turn(asks, tiny_process(DECODER))]


@pytest.mark.parametrize("sampling", (Sampling(), Sampling(temperature=0.7), Sampling(top_k=5)), ids=("plain", "cool", "truncated"))
def test_what_was_drawn_can_be_forced(sampling):
    (drawn,) = prefixes(Extend(prefix=Prefix(PROMPT), seed=1, sampling=sampling))
    (again,) = prefixes(Extend(prefix=Prefix(PROMPT), seed=2, sampling=sampling, forced=drawn.tokens))
    assert (again.tokens, again.text, again.finish) == (drawn.tokens, drawn.text, drawn.finish)
    assert again.log_p == pytest.approx(drawn.log_p, abs=1e-4) and again.log_q == pytest.approx(drawn.log_q, abs=1e-4)
    (on,) = prefixes(Extend(prefix=Prefix(PROMPT), seed=2, sampling=sampling, forced=drawn.tokens[:2]))
    assert on.tokens[:2] == drawn.tokens[:2]


def test_noise_drifts():
    ask = lambda seed, drift=(): Extend(prefix=Prefix(PROMPT), seed=seed, drift=drift)
    plain, other, still, gone = prefixes(ask(1), ask(2), ask(1, ((2, 0.0),)), ask(1, ((2, 1.0),)))
    assert still == plain and gone == other and plain.tokens != other.tokens


def test_what_cannot_be_forced():
    with pytest.raises(BadField, match="forced"):
        tiny_process(DECODER).add(Extend(prefix=Prefix(PROMPT), seed=0, forced=(10**6,)))
    with pytest.raises(BadField, match="without a form"):
        tiny_process(DECODER).add(Extend(prefix=Prefix(replace(PROMPT, form=Regex("a+"))), seed=0, forced=(5,)))
