"""How ops are put together: `a >> b`, Repeat, While. Each part gets an rng of its own, so that no two steps share a seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ponder.core.asks import Answer, Candidate, Turn
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Particles
from ponder.core.rng import Rng
from ponder.core.roles import Op

T = TypeVar("T")
Running = Generator[Turn, Sequence[Answer], Particles]


class Composable:
    """Gives an op `>>`."""

    def __rshift__(self, other: Op) -> "Chain":
        return Chain((*parts(self), *parts(other)))


class PureOp(Composable, ABC):
    """An op that asks nothing."""

    guarantee: Guarantee = Guarantee.EXACT

    def run(self, particles: Particles, rng: Rng) -> Running:
        yield from ()
        return self.apply(particles, rng)

    @abstractmethod
    def apply(self, particles: Particles, rng: Rng) -> Particles:
        """The whole op. Never modifies `particles`."""


def parts(op: Op) -> tuple[Op, ...]:
    return op.ops if isinstance(op, Chain) else (op,)


@dataclass(frozen=True)
class Chain(Composable):
    """One op after the other; Chain(()) is the identity."""

    ops: tuple[Op, ...]

    @property
    def guarantee(self) -> Guarantee:
        return weakest(op.guarantee for op in self.ops)

    def run(self, particles: Particles, rng: Rng) -> Running:
        for i, op in enumerate(self.ops):
            particles = yield from op.run(particles, rng.fork(i))
        return particles


@dataclass(frozen=True)
class Repeat(Composable):
    """`op`, `times` times over."""

    op: Op
    times: int

    @property
    def guarantee(self) -> Guarantee:
        return self.op.guarantee

    def run(self, particles: Particles, rng: Rng) -> Running:
        for i in range(self.times):
            particles = yield from self.op.run(particles, rng.fork(i))
        return particles


@dataclass(frozen=True)
class While(Composable):
    """`op` as long as `condition` holds. `best` names the candidates that stand while a round runs."""

    op: Op
    condition: Callable[[Particles], bool]
    best: Callable[[Particles], tuple[Candidate, ...]] | None = None

    @property
    def guarantee(self) -> Guarantee:
        return self.op.guarantee

    def run(self, particles: Particles, rng: Rng) -> Running:
        num_rounds = 0
        while self.condition(particles):
            best = self.best(particles) if self.best else ()
            particles = yield from showing(best, self.op.run(particles, rng.fork(num_rounds)))
            num_rounds += 1
        return particles


def showing(best: tuple[Candidate, ...], running: Generator[Turn, Sequence[Answer], T]) -> Generator[Turn, Sequence[Answer], T]:
    """`running`, each turn carrying `best`; while there is none, what the op itself shows."""
    try:
        turn = next(running)
        while True:
            turn = running.send((yield replace(turn, best=best or turn.best)))
    except StopIteration as stop:
        return stop.value
