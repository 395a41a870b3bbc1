"""Laws of length controls that promise never to lose: a simulated process whose steps cost what a table says, and texts of known difficulty.

A text says of every token whether a drafter guesses it. Requests are decoded round by round, a new one wherever one ends, under the control and
under fixed numbers of guesses, none included; seconds are added up by the table, so no clock is read. What the process says that a step took
is nonsense, as on a busy machine: a control that believes it is found out. Mutants are in tests/accelerate/test_length_laws.py.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ponder.core.draft import EMPTY, LengthControl, Spent, StepCosts, Verified, chain
from ponder.testing.exact import require

MEASURED = StepCosts(seconds=((1, 0.0093), (2, 0.0097), (4, 0.0101), (8, 0.0115), (16, 0.0183), (32, 0.0331)))  # SmolLM2-135M, one thread
STEEP = StepCosts(seconds=((1, 0.01), (2, 0.018), (64, 0.5)))  # nearly as dear as tokens one by one
MEASURED_CHEAP = StepCosts(seconds=((1, 0.0093), (64, 0.0183)))  # as if the rows of a crowd were cheap
FLAT = StepCosts(seconds=((1, 0.01), (16, 0.0102), (64, 0.02)))  # as on a card
CARD = StepCosts(seconds=((1, 0.01), (16, 0.012), (64, 0.02)), waiting=0.003)  # which works ahead where nothing is guessed
FIXED = (0, 1, 2, 3, 5, 12)


class Text(Protocol):
    """Whether the drafter knows each of the next `num` tokens."""

    def __call__(self, rng: random.Random, num: int) -> list[bool]: ...


def even(chance: float) -> Text:
    return lambda rng, num: [rng.random() < chance for _ in range(num)]


def copied(share: float, length: int = 20) -> Text:
    """Stretches of that length, of which that share are known almost whole and the others hardly."""

    def text(rng: random.Random, num: int) -> list[bool]:
        found: list[bool] = []
        while len(found) < num:
            chance = 0.95 if rng.random() < share else 0.03
            found += [rng.random() < chance for _ in range(length)]
        return found[:num]

    return text


@dataclass(frozen=True, kw_only=True)
class World:
    costs: StepCosts
    text: Text
    num_at_once: int = 1
    draft_seconds: float = 0.0001  # of making a draft of one request
    num_tokens: int = 96  # of an answer
    num_requests: int = 8

    def fixed(self, num: int) -> float:
        """Seconds of a token with that many guesses always."""
        return self._decoded(lambda requests: [num or -1] * len(requests), lambda news, spent: None, lambda request: None)

    def controlled(self, control: LengthControl) -> float:
        controlling = control.open(lambda: self.costs)

        def counts(requests: Sequence[int]) -> list[int]:
            rooms = controlling.rooms(requests)
            asked = [request for request, room in zip(requests, rooms, strict=True) if room]
            found = dict(zip(asked, controlling.cut(asked, [chain([1] * room) for room in rooms if room], len(requests)) if asked else []))
            return [found.get(request, -1) for request in requests]

        return self._decoded(counts, controlling.learn, controlling.forget)

    def _decoded(
        self, counts: Callable[[Sequence[int]], list[int]], learn: Callable[[Sequence[Verified], Spent], None], forget: Callable[[int], None]
    ) -> float:  # fmt: skip
        """Seconds of a token while all places are taken. A count below 0: nothing was asked of the drafter. Where steps are begun ahead, what is
        wanted of one that was has its place in the next, which waits."""
        is_ahead = works_ahead = self.costs.waiting > 0
        rng, noise, seconds, num_tokens = random.Random(7), random.Random(3), 0.0, 0
        waiting = [self.text(rng, self.num_tokens) for _ in range(self.num_requests)]
        live = {at: (0, waiting.pop()) for at in range(self.num_at_once)}  # request -> tokens done, what is known
        while len(live) == self.num_at_once:
            wanted = counts(list(live))
            nums = [max(0, min(n, self.num_tokens - done - 1)) for n, (done, _) in zip(wanted, live.values(), strict=True)]
            asking = self.draft_seconds * sum(n >= 0 for n in wanted) + self.costs.waiting
            if is_ahead:
                is_ahead, asking, nums = not any(nums), 0.0, [0] * len(nums)
            else:
                is_ahead = works_ahead and not any(nums)
            num_rows = len(live) + sum(nums)
            seconds += self.costs.of(num_rows) + asking
            news = []
            for (request, (done, known)), num in zip(list(live.items()), nums, strict=True):
                right = known[done : done + num]
                taken = right.index(False) if False in right else num
                live[request], num_tokens = (done + taken + 1, known), num_tokens + taken + 1
                news.append(Verified(request=request, tree=chain([1] * num), path=tuple(range(taken)), tokens=(1,) * (taken + 1)))
            busy = 0.02 * noise.expovariate(1.0)  # of no use
            learn(news, Spent(num_rows=num_rows, seconds=busy, num_drafted=sum(nums), draft_seconds=asking))
            for request in [request for request, (done, _) in live.items() if done >= self.num_tokens]:
                del live[request]
                forget(request)
                if waiting:
                    live[request + self.num_at_once] = 0, waiting.pop()
        return seconds / num_tokens


@functools.cache
def worlds() -> dict[str, World]:
    texts = {"nothing": even(0.0), "some": even(0.35), "most": even(0.9), "copies": copied(0.5), "few copies": copied(0.1)}
    kinds = {
        "measured": World(costs=MEASURED, text=texts["nothing"]), "steep": World(costs=STEEP, text=texts["nothing"]),
        "flat": World(costs=FLAT, text=texts["nothing"]), "dear drafts": World(costs=MEASURED, text=texts["nothing"], draft_seconds=0.0005),
        "8 at once": World(costs=MEASURED, text=texts["nothing"], num_at_once=8, num_requests=24),
        "card": World(costs=CARD, text=texts["nothing"]),
        "32 at once": World(costs=MEASURED, text=texts["nothing"], num_at_once=32, num_requests=64),
    }  # fmt: skip
    return {f"{name}, {label}": replace(world, text=text) for name, text in texts.items() for label, world in kinds.items()}


@functools.cache
def times_of(name: str) -> dict[int, float]:
    """Seconds of each fixed number of guesses in a world."""
    return {num: worlds()[name].fixed(num) for num in FIXED}


def law_never_loses(control: LengthControl, least: float = 0.97) -> None:
    """Beside plain decoding: at least `least` of its speed in every world, whatever the drafter knows."""
    for name, world in worlds().items():
        share = times_of(name)[0] / world.controlled(control)
        require(share >= least, f"{name}: {share:.3f} of plain decoding's speed")


def law_is_near_the_best(control: LengthControl, most: float = 1.1) -> None:
    """Beside the best fixed number of guesses for each world, which nobody knows beforehand: at most `most` of its time."""
    for name, world in worlds().items():
        best, least = min(times_of(name).items(), key=lambda item: item[1])
        seconds = world.controlled(control)
        require(seconds <= most * least, f"{name}: {seconds / least:.3f} times the time of always {best}")


def law_naps(control: LengthControl, num: int = 16, num_tokens: int = 320) -> None:
    """Requests of a crowd whose drafter never has a guess: each is asked ever more rarely, at most every 16 tokens and some times at first."""
    controlling, requests, asked = control.open(lambda: MEASURED_CHEAP), list(range(num)), 0
    for _ in range(num_tokens):
        rooms = controlling.rooms(requests)
        asking = [request for request, room in zip(requests, rooms, strict=True) if room]
        asked += len(asking)
        controlling.cut(asking, [EMPTY] * len(asking), num)
        news = [Verified(request=request, tree=EMPTY, path=(), tokens=(1,)) for request in requests]
        controlling.learn(news, Spent(num_rows=num, seconds=0.01, num_drafted=0, draft_seconds=0.0))
    most = 2 * math.log2(num_tokens) + num_tokens / 16
    require(0 < asked / num <= most, f"asked {asked / num:.0f} times about an answer of {num_tokens} tokens, at most {most:.0f}")


def law_asks_nobody_in_vain(control: LengthControl) -> None:
    """Where a row of a guess costs what one of another request does, no guess can pay, and nobody is asked; where it is cheap, somebody is."""
    for costs, num, is_asked in ((MEASURED, 32, False), (MEASURED, 8, True), (FLAT, 1, True), (MEASURED_CHEAP, 32, True)):
        rooms = control.open(lambda costs=costs: costs).rooms(list(range(num)))  # type: ignore[misc]
        require(any(rooms) == is_asked, f"{num} at once, {costs.seconds}: rooms {rooms}")
