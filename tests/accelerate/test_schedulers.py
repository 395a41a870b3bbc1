"""Laws of the schedulers: somebody always goes on, nobody gets more than it can use; and what makes each of them itself."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.accelerate.schedule.first_come import FirstCome
from ponder.accelerate.schedule.prefill_first import PrefillFirst
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import SCHEDULERS
from ponder.core.errors import BadField
from ponder.core.schedule import Scheduler, Work

WORKS = st.lists(st.one_of(st.just(Work(1, True)), st.integers(1, 900).map(lambda n: Work(n, False))), min_size=1, max_size=70)
BUDGETS = st.integers(1, 600)


def lawful(scheduler: Scheduler, works: Sequence[Work], budget: int) -> bool:
    given_to = scheduler.allot(works, budget)
    return len(given_to) == len(works) and sum(given_to) > 0 and all(0 <= num <= work.num_left for num, work in zip(given_to, works))


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=lambda s: s.name)
@given(works=WORKS, budget=BUDGETS)
def test_somebody_goes_on_and_nobody_gets_too_much(scheduler: Scheduler, works: list[Work], budget: int):
    assert lawful(scheduler, works, budget)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=lambda s: s.name)
@given(works=WORKS, budget=BUDGETS)
def test_all_end(scheduler: Scheduler, works: list[Work], budget: int):
    """With prompts only, everybody is read in a bounded number of steps, the first before the last."""
    left = [work.num_left for work in works if not work.is_generating]
    ended: list[int] = []
    for _ in range(sum(left) + 1):
        alive = [i for i, num in enumerate(left) if num]
        for i, num in zip(alive, scheduler.allot([Work(left[i], False) for i in alive], budget) if alive else []):
            left[i] -= num
            ended += [i] * (not left[i])
    assert not any(left)
    assert ended == sorted(ended)


@given(works=WORKS, budget=BUDGETS)
def test_sarathi_never_lets_those_who_generate_wait(works: list[Work], budget: int):
    sarathi = Sarathi(chunk=100, least=10)
    given_to = sarathi.allot(works, budget)
    assert all(num == 1 for num, work in zip(given_to, works) if work.is_generating)
    if any(work.is_generating for work in works):
        assert sum(num for num, work in zip(given_to, works) if not work.is_generating) <= 100


@given(works=WORKS, budget=BUDGETS)
def test_prefill_first_never_mixes(works: list[Work], budget: int):
    kinds = {work.is_generating for num, work in zip(PrefillFirst().allot(works, budget), works) if num}
    assert len(kinds) == 1


@given(works=WORKS, budget=BUDGETS)
def test_first_come_never_cuts_a_prompt(works: list[Work], budget: int):
    assert all(num in (0, work.num_left) for num, work in zip(FirstCome().allot(works, budget), works))


def test_a_scheduler_that_lets_all_wait_is_caught():
    class Idle:
        name = "idle"

        def allot(self, works: Sequence[Work], budget: int) -> list[int]:
            return [0 if work.is_generating else min(work.num_left, budget) for work in works]

    assert not lawful(Idle(), [Work(1, True)], 10)


def test_bad_settings():
    with pytest.raises(BadField, match="chunk=8, least=16"):
        Sarathi(chunk=8)
