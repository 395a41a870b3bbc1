"""Rotary angles: cos and sin by position, computed up to where a sequence has come; for a long context most are never needed.

Equation   angle = position * theta^(-2i/R) / factor_i; cos and sin times rope_scale where the pair rotates
Shapes     positions int64 [T] -> cos, sin float32 [T, 1, E], both halves, the first half of sin negated
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.formats import ModelConfig

STEP = 1024  # positions computed at once, at least


class Rotary:
    """The angles of one kind. Safe to share: it remembers what it computed, and what it gives does not depend on that."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        """kind: of `rotary_kind`."""
        self.config, self.kind = config, kind
        self.known = rotary_rows(config, kind, 0, 0)

    @property
    def nbytes(self) -> int:
        return self.known[0].nbytes + self.known[1].nbytes

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin of positions. Raises IndexError beyond the context."""
        cos, sin = self.upto(int(positions.max()) + 1 if len(positions) else 0)
        return cos[positions], sin[positions]

    def upto(self, num: int) -> tuple[Tensor, Tensor]:
        """cos, sin of at least the first `num` positions that are within the context."""
        known, limit = self.known, self.config.context_len
        start = len(known[0])
        if start < min(num, limit):
            stop = min(limit, max(num, 2 * start, STEP))
            more = rotary_rows(self.config, self.kind, start, stop)
            known = self.known = torch.cat([known[0], more[0]]), torch.cat([known[1], more[1]])
        return known


@dataclass(frozen=True)
class WholeRotary:
    """The angles of all positions of a context, for devices on which looking what is known would take longer than the lookup."""

    cos: Tensor  # [context, 1, E]
    sin: Tensor

    @property
    def nbytes(self) -> int:
        return self.cos.nbytes + self.sin.nbytes

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[positions], self.sin[positions]


def rotary_kind(config: ModelConfig, layer: int) -> str:
    """What a layer rotates by: "global", "local" (layers with a window, where they have a theta of their own) or "none"."""
    if not config.is_rotary(layer):
        return "none"
    return "local" if config.rope_local_theta is not None and config.window(layer) is not None else "global"


def frequencies(config: ModelConfig, kind: str) -> Tensor:
    """float64 [E / 2]: angle of one position; 0 for parts that do not rotate."""
    half = (config.rotary_dim or config.head_dim) // 2
    theta = config.rope_local_theta if kind == "local" and config.rope_local_theta else config.rope_theta
    frequency = torch.zeros(config.head_dim // 2, dtype=torch.float64)
    if kind != "none":
        frequency[:half] = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    if kind == "global" and config.rope_factors is not None:
        frequency[:half] /= torch.tensor(config.rope_factors, dtype=torch.float64)
    return frequency


def rotary_rows(config: ModelConfig, kind: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin of positions start to stop, laid out for `rotate`. Parts that do not rotate have angle 0."""
    half, scale = (config.rotary_dim or config.head_dim) // 2, config.rope_scale if kind == "global" else 1.0
    cos, sin = cos_sin(frequencies(config, kind), torch.arange(start, stop, dtype=torch.float64))
    for x in (cos, sin):
        x[:, :half] *= scale
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def cos_sin(frequency: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [T, E / 2] of float64 positions [T]."""
    angle = torch.outer(positions, frequency)
    return angle.cos().float(), angle.sin().float()


def turned(x_THE: Tensor, frequency: Tensor, turn_T: Tensor) -> Tensor:
    """Rows that were rotated to one position, rotated to another `turn` positions on; scales stay as they are. In the dtype of x."""
    return turned_by(x_THE, turn_of(frequency, turn_T))


def turn_of(frequency: Tensor, turn_T: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [T, 1, E / 2] cos and sin of turns."""
    cos, sin = cos_sin(frequency, turn_T.double())
    return cos[:, None], sin[:, None]


def turned_by(x_THE: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """`turned` by what `turn_of` gave."""
    cos, sin = turn
    low, high = x_THE.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x_THE.dtype)
