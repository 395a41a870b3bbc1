"""Probabilistic programs: any Python generator that draws, asks the model and observes becomes a kernel that ops run particles by.

    def program():
        coin = yield Draw((math.log(0.5), math.log(0.5)))          # answered by the index that was drawn
        told = yield Extend(prefix=Prefix(prompt), seed=0)         # any ask; its seed is replaced by the particle's own
        yield Observe(math.log(0.9 if coin else 0.2))              # multiplies the weight; particles may be resampled here
        return coin, told.prefix.text

The measure: mu(v) = sum over executions that return v of prod p(draws) prod q(answers) prod exp(log_w). A program must be a pure
function of the replies that it gets: a particle is a list of replies, so a fork shares them and is run again from the start,
without asking anything again (Lew et al. 2023, arXiv:2306.03081, keep a copy of the interpreter instead).
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Ask, Extend, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles
from ponder.core.rng import Rng
from ponder.core.roles import Resampler
from ponder.infer.compose import Chain, While
from ponder.infer.ops import Advance, Resample, Spawn


@dataclass(frozen=True)
class Draw:
    """One of several, with these log-probabilities (normalised here). Answered by its index."""

    log_p: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.log_p or max(self.log_p) == float("-inf") or any(x != x for x in self.log_p):
            raise BadField(f"draw log_p={self.log_p}: one number per choice, not all minus infinity, none NaN")


@dataclass(frozen=True)
class Observe:
    """Multiplies the execution's weight by exp(log_w); minus infinity rules it out. Answered by None."""

    log_w: float


Step = Draw | Observe | Ask
Running = Generator[Step, object, object]
Program = Callable[[], Running]


@dataclass(frozen=True)
class Execution:
    """A program as far as it has come: what it was told."""

    replies: tuple[object, ...] = ()
    is_done: bool = False
    value: object = None  # what it returned


@dataclass(frozen=True)
class ProgramStep:
    """Kernel on Batch[Execution]: every unfinished execution goes on to its next Observe, or to its end."""

    program: Program

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Execution], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Execution], Tensor]]:
        items, log_g = list(state), torch.zeros(len(state), dtype=torch.float64)
        under_way = {i: (self.program(), item) for i, item in enumerate(items) if not item.is_done}
        steps = {i: replayed(running, item.replies) for i, (running, item) in under_way.items()}
        while steps:
            asks = {i: seeded(step, rng.seed(i, len(items[i].replies))) for i, step in steps.items() if not isinstance(step, Draw | Observe)}
            told = dict(zip(asks, (yield Turn(tuple(asks.values()))), strict=True)) if asks else {}
            for i, step in list(steps.items()):
                reply = told[i] if i in told else drawn(step, rng) if isinstance(step, Draw) else None
                items[i] = replace(items[i], replies=(*items[i].replies, reply))
                try:
                    steps[i] = under_way[i][0].send(reply)
                except StopIteration as stop:
                    items[i] = replace(items[i], is_done=True, value=stop.value)
                    del steps[i]
                if isinstance(step, Observe):
                    log_g[i] = step.log_w
                    steps.pop(i, None)
        return Batch(tuple(items)), log_g


def replayed(running: Running, replies: Sequence[object]) -> Step:
    """The step that a fresh execution stands at after `replies`. Raises BadField for a program that ends without any step."""
    try:
        step = next(running)
        for reply in replies:
            step = running.send(reply)
    except StopIteration:
        raise BadField("a program ended where it went on before, or without a step: it must be a pure function of its replies") from None
    return step


def seeded(step: Ask, seed: int) -> Ask:
    return replace(step, seed=seed) if isinstance(step, Extend) else step


def drawn(step: Draw, rng: Rng) -> int:
    log_p = torch.tensor(step.log_p, dtype=torch.float64)
    return int(rng.categorical(log_p.log_softmax(0)[None])[0])


def is_open(particles: Particles) -> bool:
    """Whether a live execution is unfinished."""
    return any(not item.is_done and log_w > float("-inf") for item, log_w in zip(particles.state, particles.log_w.tolist()))  # type: ignore[call-overload]


def smc(program: Program, num: int, resampler: Resampler, ess_below: float | None = 0.5) -> Chain:
    """Op: `num` executions, run side by side and resampled at what they observe. Begins with start(Execution())."""
    return Spawn(num) >> While(Resample(resampler, ess_below) >> Advance(ProgramStep(program)), is_open)
