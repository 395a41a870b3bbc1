"""Randomness is the single effect. Whoever needs a random number gets an `Rng` as argument.

Three interpreters of the same requests:
    TorchRng         real draws from a torch.Generator
    EnumeratingRng   walks every random path with its exact probability: `for path in paths(): run(path.rng)`
    ReplayingRng     gives back recorded draws, so that a run repeats or meets another model with the same numbers
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Rng(Protocol):
    """Source of all randomness. Draws advance it; `seed` and `fork` do not."""

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        """[len(cuts)] independent draws from [0, 1), float64.

        cuts[i] lists the points of (0, 1) at which the caller's result may change as draw i crosses them: the caller
        promises that its result depends only on the cell between two cuts. That makes a continuous draw finite.
        """
        ...

    def categorical(self, log_p: Tensor) -> Tensor:
        """[N, V] unnormalised log-probabilities -> [N] int64 draws, one per row. Rows need one finite entry."""
        ...

    def seed(self, *path: int) -> int:
        """A 63-bit seed that is a pure function of this rng's own key and `path`: same path, same seed."""
        ...

    def fork(self, *path: int) -> "Rng":
        """An independent source for a sub-task, a pure function of this rng's own key and `path`."""
        ...


def hash_seed(*parts: object) -> int:
    """A 63-bit seed from any parts with a stable repr (int, str, tuples of them)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class TorchRng:
    """Real draws. `key` may be any int; equal keys give equal draws."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.generator = torch.Generator().manual_seed(hash_seed("draws", key))

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        return torch.rand(len(cuts), dtype=torch.float64, generator=self.generator)

    def categorical(self, log_p: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(log_p.double(), -1), 1, generator=self.generator)[:, 0]

    def seed(self, *path: int) -> int:
        return hash_seed(self.key, path)

    def fork(self, *path: int) -> "TorchRng":
        return TorchRng(hash_seed("fork", self.key, path))


@dataclass
class Path:
    """One random path: the choices made, and the log-probability of making them."""

    choices: list[int]  # prescribed first; grows while the path is walked
    at: int = 0  # number of choices made so far
    log_p: float = 0.0
    widths: list[list[float]] = field(default_factory=list)  # probabilities offered at each choice


class EnumeratingRng:
    """Walks one path; `enumerate_paths` restarts the program for every other one. Forks walk the same path."""

    def __init__(self, path: Path, key: tuple[object, ...] = ()) -> None:
        self.path, self.key = path, key

    def choose(self, probabilities: Sequence[float]) -> int:
        """Index of the branch this path takes among finite `probabilities` (need not sum to 1: they are normalised)."""
        total = float(sum(probabilities))
        path = self.path
        if path.at == len(path.choices):
            path.choices.append(next(i for i, p in enumerate(probabilities) if p > 0))
        path.widths.append(list(probabilities))
        chosen = path.choices[path.at]
        path.at += 1
        path.log_p += math.log(probabilities[chosen] / total)
        return chosen

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        draws = []
        for points in cuts:
            inside = sorted({0.0, 1.0, *(float(p) for p in points if 0 < p < 1)})
            cell = self.choose([b - a for a, b in itertools.pairwise(inside)])
            draws.append((inside[cell] + inside[cell + 1]) / 2)
        return torch.tensor(draws, dtype=torch.float64)

    def categorical(self, log_p: Tensor) -> Tensor:
        rows = log_p.double().tolist()  # plain floats: a parallel softmax of a few numbers costs more than the whole path
        return torch.tensor([self.choose([math.exp(x - max(row)) for x in row]) for row in rows], dtype=torch.int64)

    def seed(self, *path: int) -> int:
        return hash_seed("enumerating", self.key, path)

    def fork(self, *path: int) -> "EnumeratingRng":
        return EnumeratingRng(self.path, (*self.key, path))


def enumerate_paths(program: Callable[[EnumeratingRng], T], max_paths: int = 1_000_000) -> Iterator[tuple[T, float]]:
    """Yields (result, probability) for every random path of `program`, which must be a pure function of its rng.

    Probabilities are products of float64 factors and sum to 1. Raises RuntimeError after `max_paths`.
    """
    stack: list[list[int]] = [[]]
    for _ in range(max_paths):
        if not stack:
            return
        prefix = stack.pop()
        path = Path(list(prefix))
        result = program(EnumeratingRng(path))
        yield result, math.exp(path.log_p)
        for depth in range(len(prefix), len(path.choices)):
            later = [i for i, p in enumerate(path.widths[depth]) if p > 0 and i > path.choices[depth]]
            stack.extend([*path.choices[:depth], i] for i in later)
    raise RuntimeError(f"more than {max_paths} random paths; use a smaller program")


class RecordingRng:
    """Passes requests on to `rng` and keeps what came back, in order, for a ReplayingRng."""

    def __init__(self, rng: Rng, draws: list[list[float]] | None = None) -> None:
        self.rng = rng
        self.draws: list[list[float]] = [] if draws is None else draws

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        drawn = self.rng.uniform(cuts)
        self.draws.append(drawn.tolist())
        return drawn

    def categorical(self, log_p: Tensor) -> Tensor:
        drawn = self.rng.categorical(log_p)
        self.draws.append(drawn.tolist())
        return drawn

    def seed(self, *path: int) -> int:
        return self.rng.seed(*path)

    def fork(self, *path: int) -> "RecordingRng":
        return RecordingRng(self.rng.fork(*path), self.draws)


class ReplayingRng:
    """Gives back recorded draws in order. Seeds come from `key`, as TorchRng makes them. Raises IndexError at the end."""

    def __init__(self, draws: Sequence[Sequence[float]] | Iterator[Sequence[float]], key: int) -> None:
        self.draws: Iterator[Sequence[float]] = draws if isinstance(draws, Iterator) else iter(draws)
        self.key = key

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        return torch.tensor(self._next(len(cuts)), dtype=torch.float64)

    def categorical(self, log_p: Tensor) -> Tensor:
        return torch.tensor(self._next(len(log_p)), dtype=torch.int64)

    def seed(self, *path: int) -> int:
        return hash_seed(self.key, path)

    def fork(self, *path: int) -> "ReplayingRng":
        return ReplayingRng(self.draws, hash_seed("fork", self.key, path))

    def _next(self, num: int) -> Sequence[float]:
        drawn = next(self.draws, None)
        if drawn is None or len(drawn) != num:
            raise IndexError(f"replay asks for {num} draws, the record has {None if drawn is None else len(drawn)}")
        return drawn
