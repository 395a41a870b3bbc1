"""What a process's steps cost by their rows: measured once, by the clock of the thread that steps, which runs only while it computes.

Each width is tried in turn with the others, and the least of a few times counts: what else the machine does only adds. The rows are a
chain of guesses behind a short prompt, in pages that are given back. On another device than the CPU the host waits for the step, so there
it is the wall's clock; where the host works ahead of the device, a step costs what it then takes, and what waiting for the tokens of each
step before the next is begun would cost is told apart (StepCosts.waiting).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.asks import Sampling
from ponder.core.draft import StepCosts
from ponder.engine.attend import Span
from ponder.engine.pages import Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.sampler import Draw, Drawn

WIDTHS = (1, 2, 4, 8, 16, 32)
CONTEXT = 32  # tokens before the rows
NUM_AHEAD = 6  # steps in a row that each begin before the one before has told its tokens
REPEATS = 3  # of the cheap ones, up to 8 rows; the others are tried once
UNKNOWN = StepCosts(seconds=((1, 1.0), (2, 2.0)))  # where there is no room to measure: nothing is worth a guess


class Stepping(Protocol):
    """What of a process is measured."""

    pool: Pool
    max_rows: int

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor: ...

    def _draw(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]: ...


@dataclass(eq=False)
class Meter:
    """The clock of a process, and what it says of steps of each width."""

    process: Stepping

    widths = WIDTHS
    looks_ahead = False  # whether the host works ahead of the device
    one = waiting = 0.0  # seconds of a step of one row, and StepCosts.waiting, once measured

    def clock(self) -> float:
        """Seconds."""
        return time.thread_time() if self.process.pool.device.type == "cpu" else time.perf_counter()

    def costs(self) -> StepCosts:
        """Of steps of one sequence; measured at the first call."""
        return self._costs

    @cached_property
    @torch.inference_mode()
    def _costs(self) -> StepCosts:
        widths = [num for num in self.widths if num <= self.process.max_rows]
        pages = Pages(self.process.pool)
        if len(widths) < 2 or not self.process.pool.num_pages or not pages.reserve(CONTEXT + max(widths)):
            pages.release()
            return UNKNOWN
        self.process._forward([Span(pages, 0, CONTEXT, CONTEXT)], [0] * CONTEXT)
        pages.num_tokens = CONTEXT
        for num in widths:
            self._seconds(pages, num)  # the first of a width does what later ones find done
        least = self._least(pages, widths)
        pages.release()
        rising = [(num, max(least[n] for n in widths if n <= num)) for num in widths]
        self.one = rising[0][1]
        return StepCosts(seconds=tuple(rising), waiting=self.waiting)

    def _least(self, pages: Pages, widths: Sequence[int]) -> dict[int, float]:
        """Seconds of a step of each width."""
        return {num: min(self._seconds(pages, num) for _ in range(1 if num > 8 else REPEATS)) for num in widths}

    def _seconds(self, pages: Pages, num: int) -> float:
        start = self.clock()
        self.process._draw(self.process._forward([Span(pages, CONTEXT, CONTEXT + num, CONTEXT)], [0] * num), greedy(num))
        return self.clock() - start


def greedy(num: int) -> list[Draw]:
    return [Draw(0, i, Sampling(temperature=0.0)) for i in range(num)]


class Ahead(Stepping, Protocol):
    def _draw_and_go_on(self, hidden_RD: Tensor, spans: Sequence[Span], wishes: Sequence[Draw]) -> Tensor: ...


@dataclass(eq=False)
class MeterAhead(Meter):
    """Of a process that queues the pass after a draw before it reads what was drawn."""

    process: Ahead
    widths = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 48, 64)  # where its fixed shapes begin and end (engine.graphs)
    looks_ahead = True

    def _least(self, pages: Pages, widths: Sequence[int]) -> dict[int, float]:
        least = {num: min(self._seconds_ahead(pages, num) for _ in range(REPEATS)) for num in widths}
        num = widths[-1] if len(widths) < 4 else widths[3]
        self.waiting = max(0.0, min(self._seconds(pages, num) for _ in range(REPEATS)) - least[num])
        return least

    def _seconds_ahead(self, pages: Pages, num: int) -> float:
        spans, wishes = Span(pages, CONTEXT, CONTEXT + num, CONTEXT).singles(), greedy(num)
        hidden = self.process._draw_and_go_on(self.process._forward(spans, [0] * num), spans, wishes)
        start = self.clock()
        for _ in range(NUM_AHEAD):
            hidden = self.process._draw_and_go_on(hidden, spans, wishes)
        return (self.clock() - start) / NUM_AHEAD
