"""Random mixed requests with random cancels at full load: no wrong answer, nothing leaks, all pages free at the end.

SOAK_SECONDS=1800 makes it the half hour of docs/LOG.md; the suite runs it for some seconds.
"""

import os
import random
import time
from dataclasses import replace

import pytest

from engine.tiny_models import tiny_decoder, tiny_process
from ponder.accelerate.schedule.first_come import FirstCome
from ponder.accelerate.schedule.prefill_first import PrefillFirst
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.asks import Answer, Ask, Expand, Extend, Extension, Prefix, Sampling, Score, chat
from ponder.core.budget import Cost
from ponder.core.errors import PonderError
from ponder.testing.run import answer_turn

SECONDS = float(os.environ.get("SOAK_SECONDS", "6"))
DECODER = tiny_decoder("qwen2")
KV_BYTES = 1_500_000
NUM_ANSWERS = 150  # at least


def random_ask(rng: random.Random, prefixes: list[Prefix]) -> Ask:
    kind = rng.random()
    if prefixes and kind < 0.3:
        prefix = rng.choice(prefixes)
    else:
        prefix = Prefix(chat("x" * rng.choice([1, 20, 63, 64, 65, 150, 300]) + rng.choice(["", "a", "b"]), max_tokens=rng.choice([1, 8, 40, 100])))
    if kind < 0.75:
        sampling = Sampling(temperature=rng.choice([0.0, 0.7, 1.0]), top_p=rng.choice([1.0, 0.9]))
        return Extend(prefix=prefix, seed=rng.randrange(5), max_tokens=rng.choice([None, 1, 10]), sampling=sampling)
    if kind < 0.9:
        return Score(prefix=prefix, options=tuple("y" * rng.randrange(30) for _ in range(rng.randint(1, 4))))
    return Expand(prefix=prefix, num=rng.randint(1, 5))


def bare(answer: Answer) -> Answer:
    return replace(answer, cost=Cost())


@pytest.mark.parametrize("scheduler", [Sarathi(), FirstCome(), PrefillFirst()], ids=lambda s: s.name)
def test_soak(scheduler):
    rng = random.Random(scheduler.name)
    process = tiny_process(DECODER, max_rows=24, kv_bytes=KV_BYTES, chunk=100)
    process.scheduler = scheduler
    open_asks: dict[int, Ask] = {}
    prefixes: list[Prefix] = []
    num_checked = num_cancelled = num_refused = num_answered = 0
    end = time.monotonic() + SECONDS / 3
    is_over = False
    while open_asks or not is_over:
        is_over = time.monotonic() >= end and num_answered >= NUM_ANSWERS
        while not is_over and len(open_asks) < 60:
            ask = random_ask(rng, prefixes)
            try:
                open_asks[process.add(ask, priority=rng.randrange(3))] = ask
            except PonderError:
                num_refused += 1
            if rng.random() < 0.02:
                with pytest.raises(PonderError):
                    process.add(Extend(prefix=Prefix(chat("z" * 600)), seed=0))
        for ticket, answer in process.step():
            ask = open_asks.pop(ticket)
            num_answered += 1
            if isinstance(answer, Extension) and not answer.prefix.is_final:
                prefixes = [*prefixes[-20:], answer.prefix]
            if rng.random() < 0.05:
                (alone,) = answer_turn([ask], tiny_process(DECODER))
                assert bare(answer) == bare(alone)
                num_checked += 1
        if open_asks and rng.random() < 0.3:
            ticket = rng.choice(list(open_asks))
            process.cancel(ticket)
            del open_asks[ticket]
            num_cancelled += 1
        assert process.nbytes <= KV_BYTES
    assert num_checked > 3
    assert num_cancelled > 3
    assert num_refused == 0 or num_refused < num_answered
    assert not process.running
    assert not process.waiting
    process.drop_cache()
    assert process.pool.num_used == 0, "pages leak"
    assert process.nbytes == 0
