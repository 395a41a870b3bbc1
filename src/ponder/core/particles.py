"""Particles: weighted copies of a state. They stand for the measure  mu = exp(log_z) * mean_i exp(log_w_i) delta(x_i)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.weights import check_weights, log_mean_exp

T = TypeVar("T")


class State(Protocol):
    """A batch of n things, opaque to the ops. `select` gathers, forks and drops; it never modifies and copies nothing."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> "State":
        """The batch [self[i] for i in indices]; indices is int64 [m], repeats allowed."""
        ...


@dataclass(frozen=True)
class Batch(Generic[T]):
    """A state made of any immutable items (prefixes, tuples, numbers)."""

    items: tuple[T, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def select(self, indices: Tensor) -> "Batch[T]":
        return Batch(tuple(self.items[i] for i in indices.tolist()))


@dataclass(frozen=True)
class Particles:
    """N states with log-weights. Immutable: ops return new ones.

    log_w is float64 [N] on the host, -inf for a dead particle; log_z is the log of a constant factored out of the
    weights. log_z + log-mean-exp(log_w) is the log of the estimated normaliser. ancestors lists, per resampling, the
    parent index of each particle (diagnostics only). guarantee is what the ops so far promise.
    """

    state: State
    log_w: Tensor
    log_z: float = 0.0
    guarantee: Guarantee = Guarantee.EXACT
    ancestors: tuple[tuple[int, ...], ...] = ()
    ess: tuple[float, ...] = ()  # effective sample size seen at each resampling decision

    def __post_init__(self) -> None:
        if self.log_w.dtype != torch.float64 or self.log_w.shape != (len(self.state),):
            raise BadField(f"log_w is {self.log_w.dtype} {tuple(self.log_w.shape)}: must be float64 [{len(self.state)}]")

    def __len__(self) -> int:
        return len(self.state)

    @property
    def log_evidence(self) -> float:
        """log of the estimated normaliser; -inf when every particle is dead."""
        return self.log_z + log_mean_exp(self.log_w)

    def reweighted(self, log_g: Tensor) -> "Particles":
        """Weights multiplied by exp(log_g), float64 [N]. Raises BadWeight on NaN or +inf."""
        log_w = self.log_w + log_g.double()
        if not (log_w == float("-inf")).all():
            check_weights(log_w)
        return replace(self, log_w=log_w)


def uniform_particles(state: State) -> Particles:
    """All weights 1."""
    return Particles(state, torch.zeros(len(state), dtype=torch.float64))


def as_log_weights(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
