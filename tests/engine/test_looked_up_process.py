"""Answers whose keys are looked up do not depend on chunks, neighbours, what was cached, where they were taken up again, or preemption."""

from dataclasses import replace

import pytest

from engine.test_planned import DECODER, plain, prompt_of
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.attend.quest import Quest
from ponder.accelerate.attend.recycled import Recycled
from ponder.accelerate.attend.squeezed import Squeezed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import attention_plan
from ponder.core.asks import Ask, Extend, Prefix, Sampling, Score
from ponder.engine.attend import Attention
from ponder.engine.process import LocalProcess, Settings
from ponder.native.build import library
from ponder.testing.run import answer_turn

PLANS = [Quest(keep=48, dense_layers=1), Squeezed(clusters=0.2, threshold=1.0), Recycled(keep=40, every=5)]
needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")
TEXT = "".join(chr(97 + i * i * 7 % 23) for i in range(150))


def open_process(plan, *, chunk: int = 512, kv_bytes: int = 1 << 24) -> LocalProcess:
    return LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(chunk=chunk, kv_bytes=kv_bytes, attend=plan))


def extend(num: int, seed: int) -> Extend:
    return Extend(prefix=Prefix(replace(prompt_of(TEXT[:num]), max_tokens=13)), seed=seed, sampling=Sampling(temperature=0.9))


def asks_of() -> list[Ask]:
    return [extend(150, 0), extend(150, 1), extend(113, 2), Score(prefix=Prefix(prompt_of(TEXT[:140])), options=("abcdefg", "abx"))]


@needs_kernel
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_answers_do_not_depend_on_chunks_neighbours_cache_or_preemption(plan):
    asks = asks_of()
    alone = [plain(answer_turn([ask], open_process(plan))[0]) for ask in asks]
    assert [plain(a) for a in answer_turn(asks, open_process(None))] != alone
    process = open_process(plan, chunk=50)
    for again in range(2):
        assert [plain(a) for a in answer_turn(asks[:: 1 if again else -1], process)][:: 1 if again else -1] == alone, again
    small = open_process(plan, chunk=64, kv_bytes=90_000)
    assert [plain(a) for a in answer_turn(asks, small)] == alone
    assert small.num_preempted


@needs_kernel
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("is_cached", [False, True])
def test_an_answer_taken_up_anywhere_goes_on_as_it_would_have(plan, is_cached: bool):
    ask = extend(150, 0)
    whole = answer_turn([ask], open_process(plan))[0].prefix
    for num in (1, 4, 5, 6, 11):
        process = open_process(plan)
        prefix = Prefix(ask.prefix.prompt)
        if is_cached:
            prefix = answer_turn([replace(ask, max_tokens=num)], process)[0].prefix
        else:
            prefix = answer_turn([replace(ask, max_tokens=num)], open_process(plan))[0].prefix
        scores = answer_turn([Score(prefix=prefix, options=("xyzxyz",))], process)[0].log_p
        assert scores == answer_turn([Score(prefix=prefix, options=("xyzxyz",))], open_process(plan))[0].log_p
        more = answer_turn([replace(ask, prefix=prefix)], process)[0].prefix
        assert more.tokens == whole.tokens, num
        assert more.log_p == whole.log_p


@needs_kernel
def test_an_answer_taken_up_between_lists_would_be_seen(monkeypatch):
    """Without the care for an answer's segments the list of the last full token is gone."""
    monkeypatch.setattr("ponder.engine.planned.PlannedAttention.begin", Attention.begin)
    with pytest.raises((AssertionError, KeyError)):
        test_an_answer_taken_up_anywhere_goes_on_as_it_would_have(PLANS[2], True)


def test_unit_settings_change_no_answer():
    asks = asks_of()
    wanted = [plain(a) for a in answer_turn(asks, open_process(None))]
    for plan in (Quest(keep=512), Squeezed(threshold=0.0), Recycled(every=1)):
        found = [plain(a) for a in answer_turn(asks, open_process(plan))]
        if library() is not None:
            assert found == wanted, plan


def test_they_are_named_with_their_settings():
    assert attention_plan("quest:keep=256") == Quest(keep=256)
    assert attention_plan("squeezed:threshold=0.9,coarse=0.01") == Squeezed(threshold=0.9, coarse=0.01)
    assert attention_plan("recycled:every=4,keep=128") == Recycled(every=4, keep=128)
