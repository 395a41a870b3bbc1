"""What an online driver tells after each turn: values, so that another thread may have them."""

from dataclasses import dataclass

from ponder.core.asks import Candidate, Extension
from ponder.run.recipe import Result


@dataclass(frozen=True)
class Started:
    """A job has begun. `lines` is the head of its trace."""

    job: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """A strategy was told the answers of a turn. `lines`: that turn's part of the trace; `best`: its candidates now, best first."""

    job: str
    lines: tuple[str, ...]
    best: tuple[Candidate, ...]


@dataclass(frozen=True)
class Grown:
    """`so_far` (core.roles.Process: partial) is how far the best answer of a watched job has come; the next may be another one."""

    job: str
    so_far: Extension


@dataclass(frozen=True)
class Finished:
    job: str
    result: Result


Event = Started | Told | Grown | Finished
