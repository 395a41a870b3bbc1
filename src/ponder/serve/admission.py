"""Who is next: one line per client, served in turn; a client's own requests by deadline, then by arrival."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What waits in a line."""

    @property
    def client(self) -> str: ...

    @property
    def deadline(self) -> float | None: ...


W = TypeVar("W", bound=Waiting)


class FairLines(Generic[W]):
    """Lines of clients, round robin. A client with many waiting requests delays nobody else by more than one of them."""

    def __init__(self) -> None:
        self.lines: OrderedDict[str, list[W]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(line) for line in self.lines.values())

    def __iter__(self) -> Iterator[W]:
        return (waiting for line in self.lines.values() for waiting in line)

    def put(self, waiting: W) -> None:
        self.lines.setdefault(waiting.client, []).append(waiting)

    def take(self) -> W:
        """The next one; its client goes to the end. Raises IndexError when nobody waits."""
        if not self.lines:
            raise IndexError("nobody waits")
        client, line = next(iter(self.lines.items()))
        first = min(range(len(line)), key=lambda i: (math.inf if line[i].deadline is None else line[i].deadline, i))
        waiting = line.pop(first)
        self.lines.move_to_end(client)
        if not line:
            del self.lines[client]
        return waiting

    def take_urgent(self) -> W | None:
        """The one with the earliest deadline of all; None where nobody has one."""
        urgent = [waiting for waiting in self if waiting.deadline is not None]
        if not urgent:
            return None
        first = min(urgent, key=lambda waiting: waiting.deadline or 0.0)
        self.remove(first)
        return first

    def remove(self, waiting: W) -> bool:
        """Whether it was there."""
        line = self.lines.get(waiting.client, [])
        found = next((i for i, other in enumerate(line) if other is waiting), None)
        if found is None:
            return False
        del line[found]
        if not line:
            del self.lines[waiting.client]
        return True
