"""Clocks lose nothing, and change nothing."""

import time

import pytest
import torch

from plan.scenes import opened
from ponder.core.asks import GREEDY, Extend, Prefix, chat
from ponder.engine.process import LocalProcess
from ponder.models.decoder import PlainBody
from ponder.plan.measure import draws_of
from ponder.plan.profile import SAMPLING
from ponder.plan.watch import Clock, TimedBody, TimedDecoder, timed_body, timed_steps
from ponder.testing.run import answer_turn


def check_clock(make) -> None:
    """Times sum to the whole, however they nest; a name met twice sums."""
    moment = [0]
    clock = make(now=lambda: moment[0])

    def wait(seconds: int) -> None:
        moment[0] += seconds

    with clock.on("outer"):
        wait(4)
        for _ in range(2):
            with clock.on("inner"):
                wait(3)
                with clock.on("innermost"):
                    wait(2)
        with pytest.raises(ValueError, match="inside"), clock.on("inner"):
            raise ValueError("inside")
    assert clock.seconds == {"outer": 4, "inner": 6, "innermost": 4} and sum(clock.seconds.values()) == moment[0]


class Greedy(Clock):
    """Keeps what lies within another's time."""

    def on(self, name):
        self.inner = [0.0]
        return super().on(name)


def test_clock():
    check_clock(Clock)


def test_a_clock_that_counts_twice_is_caught():
    with pytest.raises((AssertionError, IndexError)):
        check_clock(Greedy)


@pytest.mark.parametrize("is_fused", [False, True])
def test_clocks_change_no_bit_and_see_every_part(is_fused):
    process = opened()
    decoder = process.decoder
    if is_fused:
        bodies = tuple(Fused(body) for body in decoder.bodies)
        decoder = decoder.__class__(**{**vars(decoder), "bodies": bodies})
    timed = TimedDecoder(decoder, Clock())
    asks = [Extend(prefix=Prefix(chat(text, max_tokens=12)), seed=0, sampling=GREEDY) for text in ("one", "another")]
    plain = answer_turn(asks, process)
    watched = LocalProcess(timed, process.tokenizer, process.scheduler)
    assert [a.prefix for a in answer_turn(asks, watched)] == [a.prefix for a in plain]
    expected = {"before", "after"} if is_fused else {"qkv", "o", "gate_up", "down"}
    assert timed.clock.seconds.keys() == {"attention", "head", "norms/rope", *expected}
    assert all(seconds > 0 for seconds in timed.clock.seconds.values())


class Fused:
    """A body that does not say what it is made of."""

    def __init__(self, body) -> None:
        self.before, self.after, self.of_prompts = body.before, body.after, self


def test_a_plain_layer_is_opened_and_another_is_not():
    body = opened().decoder.bodies[0]
    assert isinstance(body, PlainBody)
    inner = timed_body(body, Clock()).inner
    assert isinstance(inner, PlainBody) and inner.layer.qkv is not body.layer.qkv
    fused = Fused(body)
    made = timed_body(fused, Clock())
    assert isinstance(made, TimedBody) and made.inner is fused


def test_steps_are_timed_whole():
    process = opened()
    timed = TimedDecoder(process.decoder, Clock())
    watched = LocalProcess(timed, process.tokenizer, process.scheduler)
    for i in range(3):
        watched.add(Extend(prefix=Prefix(chat(f"part {i}", max_tokens=9)), seed=i, sampling=SAMPLING))
    start = time.perf_counter()
    steps = timed_steps(watched, timed, 6, draws_of(3, SAMPLING))
    outside = time.perf_counter() - start
    inside = sum(sum(parts.values()) for parts in steps)
    sampled = sum(parts["sampling"] for parts in steps)
    assert 0.3 * outside < inside <= outside and sampled > 0
    assert all(min(parts.values()) >= 0 and parts["python"] + parts["sampling"] > 0 for parts in steps)
    assert torch.is_tensor(timed.last)
