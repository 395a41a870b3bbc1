"""What became of drafted tokens, by their depth. A part of the room, not a technique."""

from dataclasses import dataclass, field

DEPTHS = 32  # beyond, depths count as this one


@dataclass
class Shares:
    """By depth, how many tokens were looked at and how many of them accepted; what is old counts less."""

    tried: list[float] = field(default_factory=lambda: [0.0] * (DEPTHS + 1))
    taken: list[float] = field(default_factory=lambda: [0.0] * (DEPTHS + 1))

    def add(self, depth: int, num: float, memory: float, promised: float = 1.0) -> None:
        self.tried[depth] = memory * self.tried[depth] + promised
        self.taken[depth] = memory * self.taken[depth] + num

    def share(self, depth: int, prior: float, weight: float) -> float:
        return (self.taken[depth] + weight * prior) / (self.tried[depth] + weight)
