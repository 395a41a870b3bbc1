"""Search over specs by successive halving: all run on a few questions, the better part on twice as many, until one is left or all are used.

A spec below the cut goes only where the paired bootstrap is sure that the leader is better: what is undecided stays, so a few
unlucky questions do not throw the best one out. Jamieson & Talwalkar 2016, arXiv:1502.07943; axes as in Archon (arXiv:2409.15254).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ponder.core.errors import BadField

RESAMPLES = 1000


@dataclass(frozen=True)
class Tried:
    """One spec on one question."""

    right: float  # in [0, 1]
    tokens: float


Measure = Callable[[Sequence[str], range], Mapping[str, Sequence[Tried]]]  # (specs, numbers of questions) -> each spec's, in order


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a spec did on the `num` questions that it was run on."""

    spec: str
    num: int
    right: float
    tokens: float  # per question
    is_left: bool  # not dropped
    beats_leader: float  # share of bootstrap resamples in which it does at least as well as the leader


@dataclass(frozen=True, kw_only=True)
class Halving:
    first: int = 16  # questions of the first round; each further round brings as many as all before it
    keep: float = 0.5  # share of the specs that stands above the cut
    error: float = 0.05  # below the cut a spec goes when its chance to be no worse than the leader is below error / number of specs
    tokens: float | None = None  # most that a spec may take per question in the mean, after the first round; None: no limit
    seed: int = 0

    def __post_init__(self) -> None:
        if self.first < 2 or not 0 < self.keep <= 1 or not 0 <= self.error < 1 or (self.tokens is not None and self.tokens <= 0):
            raise BadField(f"{self}: first must be at least 2, keep in (0, 1], error in [0, 1), tokens positive")

    def run(self, specs: Sequence[str], measure: Measure, num_questions: int) -> Iterator[tuple[Standing, ...]]:
        """Standings of all specs after every round, the leader first: more right, then cheaper. Raises BadField."""
        if not specs or len(set(specs)) < len(specs) or num_questions < self.first:
            raise BadField(f"{len(specs)} specs on {num_questions} questions: give different specs, and at least {self.first} questions")
        race = Race({spec: [] for spec in specs})
        left, done = list(specs), 0
        while left and done < num_questions and (len(left) > 1 or done == 0):
            upto = min(num_questions, max(self.first, 2 * done))
            for spec, tried in measure(left, range(done, upto)).items():
                race.tried[spec].extend(tried)
            done = upto
            left = self.survivors(race, left, len(specs))
            yield race.standings(left, self.seed)

    def survivors(self, race: "Race", left: list[str], num_specs: int) -> list[str]:
        affordable = [s for s in left if self.tokens is None or race.mean_tokens(s) <= self.tokens]
        ranked = sorted(affordable, key=race.key, reverse=True)
        cut = max(1, math.ceil(self.keep * len(ranked)))
        spared = [s for s in ranked[cut:] if race.no_worse(s, ranked[0], self.seed) >= self.error / num_specs]
        return [*ranked[:cut], *spared]


@dataclass
class Race:
    tried: dict[str, list[Tried]] = field(default_factory=dict)

    def right(self, spec: str) -> float:
        return math.fsum(t.right for t in self.tried[spec]) / max(1, len(self.tried[spec]))

    def mean_tokens(self, spec: str) -> float:
        return math.fsum(t.tokens for t in self.tried[spec]) / max(1, len(self.tried[spec]))

    def key(self, spec: str) -> tuple[float, float]:
        return self.right(spec), -self.mean_tokens(spec)

    def no_worse(self, spec: str, other: str, seed: int) -> float:
        """Share of resamples of the questions that both met in which `spec` has at least as many right."""
        gains = torch.tensor([a.right - b.right for a, b in zip(self.tried[spec], self.tried[other])], dtype=torch.float64)
        return float((resampled(len(gains), seed) @ gains >= -1e-9).double().mean())

    def standings(self, left: Sequence[str], seed: int) -> tuple[Standing, ...]:
        ranked = sorted(self.tried, key=lambda s: (s in left, len(self.tried[s]), *self.key(s)), reverse=True)
        return tuple(
            Standing(
                spec=s, num=len(self.tried[s]), right=self.right(s), tokens=self.mean_tokens(s), is_left=s in left,
                beats_leader=self.no_worse(s, ranked[0], seed),
            ) for s in ranked
        )  # fmt: skip


@lru_cache(maxsize=16)
def resampled(num: int, seed: int) -> Tensor:
    """[RESAMPLES, num]: how often each of `num` questions is drawn."""
    draws = torch.randint(num, (RESAMPLES, num), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(RESAMPLES, num, dtype=torch.float64).scatter_add_(1, draws, torch.ones(1, 1, dtype=torch.float64).expand_as(draws))


def grid(name: str, fields: Mapping[str, Sequence[object]]) -> tuple[str, ...]:
    """Every spec NAME:field=value,... with one value of each field, in order."""
    rows = itertools.product(*([f"{field}={value}" for value in values] for field, values in fields.items()))
    return tuple(f"{name}:{','.join(row)}" if row else name for row in rows)
