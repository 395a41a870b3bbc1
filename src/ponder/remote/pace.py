"""When a request may be sent: rates per minute, and how long to wait before trying again. Pure: the clock is an argument."""

import math
from dataclasses import dataclass

from ponder.core.rng import hash_seed

MAX_WAIT = 60.0  # seconds between two tries, unless the server asks for more
BURST = 1 / 6  # of a minute's allowance may be used at once


@dataclass
class Rate:
    """At most `per_minute` in any minute, evenly after a first burst. None: no limit."""

    per_minute: float | None
    free_at: float = -math.inf  # when what was taken so far is paid for

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait before `amount` may be used; it counts as used from then on."""
        if self.per_minute is None:
            return 0.0
        start = max(self.free_at, now - 60.0 * BURST)
        self.free_at = start + 60.0 * amount / self.per_minute
        return max(0.0, start - now)


@dataclass
class Pace:
    """All requests of one endpoint: both rates, and a pause for everyone when the server says that it is too much."""

    requests: Rate
    tokens: Rate
    paused_until: float = 0.0

    def take(self, num_tokens: int, now: float) -> float:
        """Seconds to wait before a request of at most `num_tokens` tokens may be sent."""
        return max(self.requests.take(1, now), self.tokens.take(num_tokens, now))

    def left_of_pause(self, now: float) -> float:
        return max(0.0, self.paused_until - now)

    def pause(self, seconds: float, now: float) -> None:
        self.paused_until = max(self.paused_until, now + seconds)


def backoff(base: float, attempt: int, retry_after: float | None, key: int) -> float:
    """Seconds before try number attempt + 1 (attempt from 1): doubled each time, at most a minute, spread by up to a half so
    that many who failed together do not come back together; never before `retry_after`. `key` decides the spread."""
    spread = 0.5 + 0.5 * hash_seed("backoff", key, attempt) / 2**63
    own = min(MAX_WAIT, base * 2.0 ** (attempt - 1)) * spread
    return own if retry_after is None else retry_after + own * 0.1
