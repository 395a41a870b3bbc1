"""What trainings by gradient share: how many steps, at which rate, one step, and the stretches of text that a step learns from."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ponder.core.errors import BadField


def steps(
    optimizer: torch.optim.Optimizer, *, rate: float, max_steps: int, max_seconds: float, warm: int, clock: Callable[[], float] = time.perf_counter,
) -> Iterator[int]:  # fmt: skip
    """Numbers of steps until either limit. Each has its rate set: it rises to `rate` over `warm` steps and falls to 0 along a cosine."""
    start, step = clock(), 0
    while (done := max(step / max_steps, (clock() - start) / max_seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done))
        yield step
        step += 1


def step_down(optimizer: torch.optim.Optimizer, loss: Tensor, weights: Iterable[Tensor]) -> None:
    """One step, its gradient no longer than 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


def check_texts(texts: Sequence[Sequence[int]], *, batch: int, length: int) -> None:
    """Raises BadField for texts that are too short or too few."""
    if len(texts) < batch or min(map(len, texts)) < length:
        raise BadField(f"{len(texts)} texts: at least {batch} of at least {length} tokens; give more or longer ones")


def cut(text: Sequence[int], length: int, draws: torch.Generator) -> list[int]:
    """A stretch of the text, from anywhere in it."""
    start = int(torch.randint(len(text) - length + 1, (1,), generator=draws))
    return list(text[start : start + length])
