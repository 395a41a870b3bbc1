"""What is not kept stays, in 8 or 4 bits.

Paper      KIVI (Liu et al. 2024, arXiv:2402.02750), for all keys but the last; here for those that a scorer did not choose.
Equation   x ~ lo + scale * code, code in 0 .. 2^bits - 1, lo and scale (half precision) such that the least and the largest value of a
           group are hit: keys per dimension over 32 neighbours, values per key over its dimensions.
Shapes     view, kept slots of each head -> codes [K, M, E * bits / 8] of keys and of values.
Guarantee  approximate: |error| <= scale / 2 of what was not kept; what was kept is as it was.
Cost       1/2 or 1/4 of a key's 16 bits and 4 bits a number more; every query reads and unpacks all of it in PyTorch, which takes more time
           than plain attention saves: this saves memory alone.
Choose     when memory binds and a later question may need any key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.evidence import View
from ponder.core.rest import Query, evicted, met

GROUP = 32  # neighbouring keys that share a scale in each dimension


@dataclass(frozen=True, kw_only=True)
class Quantise:
    bits: int = 8  # of a number: 8 or 4
    has_rest: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise BadField(f"quantise bits={self.bits}: must be 8 or 4")

    def evict(self, view: View, kept: Sequence[Tensor]) -> None:
        return None

    def rest(self, view: View, kept: Sequence[Tensor]) -> "Packed | None":
        found = evicted(view, kept, GROUP)
        if found is None:
            return None
        keys, values, positions = found
        return Packed(
            coded(keys.unflatten(1, (-1, GROUP)), self.bits, dim=2), coded(values, self.bits, dim=2), positions.to(torch.int32),
        )  # fmt: skip


@dataclass(frozen=True)
class Codes:
    codes: Tensor  # uint8, two to a byte in 4 bits
    lo: Tensor
    scale: Tensor
    bits: int

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.lo.nbytes + self.scale.nbytes

    def read(self) -> Tensor:
        codes = self.codes if self.bits == 8 else torch.stack([self.codes & 15, self.codes >> 4], -1).flatten(-2)
        return codes.float().mul_(self.scale.float()).add_(self.lo.float())


@dataclass(frozen=True)
class Packed:
    """A Rest (core.rest)."""

    keys: Codes  # [K, M / GROUP, GROUP, E]
    values: Codes  # [K, M, E]
    positions: Tensor  # int32 [K, M]
    nbytes_away: ClassVar[int] = 0

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.positions.nbytes

    def meet(self, query: Query) -> tuple[Tensor, Tensor]:
        return met(query, self.keys.read().flatten(1, 2), self.values.read(), self.positions.long())


def coded(x: Tensor, bits: int, *, dim: int) -> Codes:
    """x in codes that share lo and scale along `dim`."""
    x, top = x.float(), (1 << bits) - 1
    lo = x.amin(dim, keepdim=True).half()
    scale = ((x.amax(dim, keepdim=True) - lo.float()) / top).clamp_(min=1e-7).half()
    codes = ((x - lo.float()) / scale.float()).round_().clamp_(0, top).to(torch.uint8)
    return Codes(codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4, lo, scale, bits)
