"""Measures as dictionaries, and the exact expectation of a random program over all its paths."""

import math
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ponder.core.asks import Answer, Turn
from ponder.core.errors import DeadParticles
from ponder.core.particles import Particles
from ponder.core.rng import Rng, enumerate_paths

T = TypeVar("T")
Measure = dict[Hashable, float]  # point -> mass, not necessarily 1 in total
Key = Callable[[object], Hashable]  # item of a Batch -> point
TOLERANCE = 1e-12


def require(condition: bool, what: str) -> None:
    """Raises AssertionError saying what the law found; unlike assert it also speaks under -O."""
    if not condition:
        raise AssertionError(what)


def returned(running: Generator[Turn, Sequence[Answer], T]) -> T:
    """What a generator that never asks returns. Raises AssertionError when it asks."""
    try:
        turn = next(running)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError(f"asked {turn.asks}: expected no asks")


def added(measure: Measure, point: Hashable, mass: float) -> None:
    measure[point] = measure.get(point, 0.0) + mass


def measure_of(particles: Particles, key: Key) -> Measure:
    """The measure that particles on a Batch stand for: exp(log_z) times the mean of exp(log_w) at each point."""
    measure: Measure = {}
    for item, log_w in zip(list(particles.state), particles.log_w.tolist(), strict=True):  # type: ignore[call-overload]
        added(measure, key(item), math.exp(particles.log_z + log_w) / len(particles) if log_w > -math.inf else 0.0)
    return measure


@dataclass(frozen=True)
class Expected:
    measure: Measure
    num_paths: int
    num_dead: int  # paths on which every particle died: they count as measure zero

    @property
    def normaliser(self) -> float:
        return math.fsum(self.measure.values())


def expected_measure(program: Callable[[Rng], Particles], key: Key, max_paths: int = 200_000) -> Expected:
    """The expectation of the particles' measure over every random path of `program`."""

    def measured(rng: Rng) -> Measure | None:
        try:
            return measure_of(program(rng), key)
        except DeadParticles:
            return None

    return averaged(measured, max_paths)


def expected_distribution(program: Callable[[Rng], Hashable], max_paths: int = 200_000) -> Expected:
    """The exact distribution of what `program` returns."""
    return averaged(lambda rng: {program(rng): 1.0}, max_paths)


def averaged(program: Callable[[Rng], Measure | None], max_paths: int) -> Expected:
    total: Measure = {}
    num_paths = num_dead = 0
    for measure, probability in enumerate_paths(program, max_paths):
        num_paths += 1
        num_dead += measure is None
        for point, mass in (measure or {}).items():
            added(total, point, probability * mass)
    return Expected(total, num_paths, num_dead)


def difference(found: Measure, wanted: Measure) -> float:
    """Largest difference of mass at any point, and of the total."""
    points = max((abs(found.get(x, 0.0) - wanted.get(x, 0.0)) for x in {*found, *wanted}), default=0.0)
    return max(points, abs(math.fsum(found.values()) - math.fsum(wanted.values())))


def normalised(measure: Measure) -> Measure:
    total = math.fsum(measure.values())
    return {point: mass / total for point, mass in measure.items()}
