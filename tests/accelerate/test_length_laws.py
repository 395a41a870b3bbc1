"""The default length control never loses much and gains most of what there is; wrong ones are found out."""

from dataclasses import dataclass

import pytest

from ponder.accelerate.length.balance import Balance, Prices
from ponder.accelerate.length.expected import Expected, Weighing
from ponder.accelerate.length.fixed import Fixed
from ponder.core.draft import StepCosts
from ponder.core.errors import BadField
from ponder.testing.laws_length import law_asks_nobody_in_vain, law_is_near_the_best, law_naps, law_never_loses


def test_the_default_never_loses():
    law_never_loses(Expected())


def test_the_default_is_near_the_best():
    law_is_near_the_best(Expected())


@pytest.mark.parametrize("wrong", [Fixed(num=3), Expected(earned=0.5), Expected(credit=20.0, earned=0.1)])
def test_what_does_not_give_up_is_found_out(wrong):
    with pytest.raises(AssertionError, match="of plain decoding's speed"):
        law_never_loses(wrong)


@pytest.mark.parametrize("wrong", [Fixed(num=0), Expected(credit=0.01, earned=0.0), Expected(num=1)])
def test_what_does_not_try_is_found_out(wrong):
    with pytest.raises(AssertionError, match="times the time of always"):
        law_is_near_the_best(wrong)


@dataclass(frozen=True, kw_only=True)
class Clocked:
    """Learns what steps cost from what they are said to have taken."""

    def open(self, costs):
        inner = Believing(Expected(), costs())
        inner.seen = dict(costs().seconds)
        return inner


class Believing(Weighing):
    seen: dict[int, float]

    def learn(self, verified, spent):
        super().learn(verified, spent)
        self.seen[spent.num_rows] = 0.5 * self.seen.get(spent.num_rows, spent.seconds) + 0.5 * spent.seconds
        most, rising = 0.0, []
        for num, seconds in sorted(self.seen.items()):
            most = max(most, seconds)
            rising.append((num, most))
        self.costs = StepCosts(seconds=tuple(rising))
        self.prices = Prices(self.costs, self.settings.num)


def test_what_believes_the_clock_of_a_busy_machine_is_found_out():
    with pytest.raises(AssertionError):
        law_never_loses(Clocked())
        law_is_near_the_best(Clocked())


def test_the_default_asks_ever_more_rarely_where_nothing_comes_of_it():
    law_naps(Expected())
    law_asks_nobody_in_vain(Expected())


def test_a_step_in_which_nobody_decodes_asks_nobody():
    control = Expected().open(lambda: StepCosts(seconds=((1, 1.0), (2, 1.1))))
    assert control.rooms([]) == []
    control.learn([], None)


def test_what_always_asks_is_found_out(monkeypatch):
    for wrong in (Fixed(num=3), Fixed(num=0)):
        with pytest.raises(AssertionError, match="times about an answer"):
            law_naps(wrong)
    with pytest.raises(AssertionError, match="32 at once"):
        law_asks_nobody_in_vain(Fixed(num=3))
    monkeypatch.setattr(Balance, "is_awake", lambda self: True)
    with pytest.raises(AssertionError, match="times about an answer"):
        law_naps(Expected())


def test_costs_lie_on_straight_lines():
    costs = StepCosts(seconds=((1, 1.0), (3, 2.0), (5, 2.0), (9, 4.0)))
    assert [costs.of(num) for num in (1, 2, 3, 4, 5, 7, 9, 13)] == [1.0, 1.5, 2.0, 2.0, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize("seconds", [((1, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 2.0), (2, 1.0)), ((1, 0.0), (2, 1.0))])
def test_costs_that_are_none(seconds):
    with pytest.raises(BadField, match="must be at least two"):
        StepCosts(seconds=seconds)
