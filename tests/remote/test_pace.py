"""Rates and retries, as pure functions of a clock that is an argument."""

import pytest

from ponder.remote.pace import MAX_WAIT, Pace, Rate, backoff
from ponder.remote.wire import retry_after_of


def sent_at(rate: Rate, amounts: list[float]) -> list[float]:
    """When each of those amounts is used, all of them wanted at once at time 100."""
    return [100.0 + rate.take(amount, 100.0) for amount in amounts]


@pytest.mark.parametrize("per_minute", [6.0, 60.0, 600.0])
def test_no_minute_holds_more_than_its_rate_and_a_first_burst(per_minute):
    times = sent_at(Rate(per_minute), [1.0] * 2000)
    for start in times[:: len(times) // 20]:
        assert sum(start <= t < start + 60 for t in times) <= per_minute * (1 + 1 / 6) + 1
    assert times[-1] - times[0] >= (2000 - per_minute / 6 - 1) / per_minute * 60 - 1e-6


def test_without_a_limit_nothing_waits():
    assert sent_at(Rate(None), [1e9] * 3) == [100.0] * 3


def test_the_slower_of_both_rates_decides_and_a_pause_holds_all():
    pace = Pace(Rate(600.0), Rate(1000.0))
    waits = [pace.take(500, 0.0) for _ in range(4)]
    assert waits == pytest.approx([0, 20, 50, 80])
    pace.pause(5.0, 10.0)
    pace.pause(1.0, 10.0)  # a shorter one shortens nothing
    assert pace.left_of_pause(10.0) == 5.0 and pace.left_of_pause(16.0) == 0.0


def test_backoff_doubles_is_spread_and_never_comes_before_retry_after():
    for key in range(50):
        waits = [backoff(0.5, attempt, None, key) for attempt in range(1, 12)]
        assert all(0.25 * 2**i <= w <= 0.5 * 2**i or w <= MAX_WAIT for i, w in enumerate(waits)) and max(waits) <= MAX_WAIT
        assert backoff(0.5, 1, 7.0, key) >= 7.0
    assert len({backoff(0.5, 3, None, key) for key in range(50)}) == 50, "those who failed together come back together"


def test_retry_after_is_seconds_or_nothing():
    assert [retry_after_of(x) for x in ("2", "0.5", "-1", None, "", "Wed, 21 Oct 2026 07:28:00 GMT")] == [2.0, 0.5, 0.0, None, None, None]
