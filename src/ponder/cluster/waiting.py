"""Which problems wait, which are under way, and which were lost how often. No Ray in here."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.errors import PonderError

Key = tuple[str, str]  # recipe, question
MAX_LOSSES = 3  # a problem that was alone on so many replicas when they died is given up


@dataclass
class Waiting:
    """Problems in order. Those of one question go one after the other, so that a recipe finds the samples of the one before it."""

    todo: list[Key]
    busy: set[str] = field(default_factory=set)  # questions under way
    suspects: set[Key] = field(default_factory=set)  # lost once: they run alone from now on
    losses: Counter[Key] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.todo or self.busy)

    def share(self, most: int, replicas: int) -> int:
        """How many problems a replica should have at a time: `most`, and fewer when too few are left to keep all at work."""
        return min(most, math.ceil((len(self.todo) + len(self.busy)) / max(1, replicas)))

    def take(self, num: int, *, is_idle: bool) -> tuple[Key, ...]:
        """Up to `num` problems for a replica. One that was lost before goes to an idle replica, alone."""
        taken: list[Key] = []
        held = set(self.busy)
        for key in self.todo:
            is_suspect = key in self.suspects
            if len(taken) >= num or (taken and taken[0] in self.suspects):
                break
            if key[1] not in held and (not is_suspect or (is_idle and not taken)):
                taken.append(key)
            held.add(key[1])  # a later recipe waits for its question's earlier one
        self.busy |= {question for _, question in taken}
        self.todo = [key for key in self.todo if key not in taken]
        return tuple(taken)

    def finished(self, key: Key) -> None:
        self.busy.discard(key[1])

    def lost(self, keys: Sequence[Key]) -> None:
        """They go first, and alone. Raises PonderError for one that has ended its replica too often."""
        for key in keys:
            self.busy.discard(key[1])
            self.suspects.add(key)
            if len(keys) == 1:
                self.losses[key] += 1
            if self.losses[key] >= MAX_LOSSES:
                raise PonderError(
                    f"question {key[1]!r} under {key[0]} was alone on {MAX_LOSSES} replicas when they died: a crash or too little memory; "
                    "leave it out or give replicas more memory, then run again with --resume: finished samples are kept"
                )
        self.todo = [*keys, *self.todo]
