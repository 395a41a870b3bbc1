"""What is not kept goes into a file; a query brings back the blocks whose bounds say that they could matter most to it.

Paper      the lookup is Quest's (Tang et al. 2024); keeping the rest off the machine's memory as InfiniGen (Lee et al. 2024) and others do.
Equation   a block of 16 keys that went together promises u = max over the group of sum_e max(q_e lo_e, q_e hi_e), which no key of it
           exceeds. A query reads the `recall` blocks of each key head with the largest u from the file, and meets their keys exactly.
Shapes     file [K, B, 2, 16, E] as the pages had it; bounds float32 [K, B, 2 E] and positions int32 [K, B * 16] stay in memory.
Guarantee  approximate: blocks that are not brought back are not met; with recall >= B every key is, up to the order of sums.
Cost       bounds: an eighth of the numbers that went. A block is a read of 4 kB (64 wide, 16 bits) per head, layer and token, which the
           system's cache of files answers while memory is there.
Choose     when memory binds and a later question may need any key, but few of them.
Differs    nothing moves back into pages: what a query asked for is read again by the next one that asks for it.
"""

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ponder.core.errors import BadField, StoreError
from ponder.core.evidence import View
from ponder.core.rest import Query, evicted, met

BLOCK = 16  # keys that come back together


@dataclass(frozen=True, kw_only=True)
class Spill:
    recall: int = 16  # blocks that a query reads, of each key head
    has_rest: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.recall < 1:
            raise BadField(f"spill recall={self.recall}: must be at least 1; evictor=drop reads none")

    def evict(self, view: View, kept: Sequence[Tensor]) -> None:
        return None

    def rest(self, view: View, kept: Sequence[Tensor]) -> "Spilled | None":
        found = evicted(view, kept, BLOCK)
        if found is None:
            return None
        keys, values, positions = found
        blocks = torch.stack([keys.unflatten(1, (-1, BLOCK)), values.unflatten(1, (-1, BLOCK))], 2)  # [K, B, 2, 16, E]
        return Spilled(blocks, positions.to(torch.int32), self.recall)


class Spilled:
    """A Rest (core.rest). Its file is there as long as it is."""

    def __init__(self, blocks: Tensor, positions: Tensor, recall: int) -> None:
        keys = blocks[:, :, 0].float()
        self.bounds = torch.cat([keys.amax(2), keys.amin(2)], 2)
        self.positions, self.recall, self.shape, self.dtype = positions, recall, tuple(blocks.shape), blocks.dtype
        data = blocks.contiguous().view(torch.uint8).numpy()
        try:
            with tempfile.NamedTemporaryFile(prefix="ponder-keys-", delete=False) as file:
                self.path = Path(file.name)
                self.close = weakref.finalize(self, self.path.unlink, missing_ok=True)
                file.write(data.tobytes())
        except OSError as error:
            raise StoreError(f"keys cannot be spilled to {tempfile.gettempdir()}: {error}; free space there, or keep more keys") from error
        self.nbytes_away = data.nbytes

    @property
    def nbytes(self) -> int:
        return self.bounds.nbytes + self.positions.nbytes

    def meet(self, query: Query) -> tuple[Tensor, Tensor]:
        found = [self.meet_one(query.one(n)) for n in range(len(query))]
        return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])

    def meet_one(self, query: Query) -> tuple[Tensor, Tensor]:
        q_KEG = query.q_NHE[0].float().unflatten(0, (self.shape[0], -1)).transpose(1, 2)
        promised = (self.bounds @ torch.cat([q_KEG.clamp(min=0), q_KEG.clamp(max=0)], 1)).amax(2)
        promised = promised.masked_fill(self.positions.unflatten(1, (-1, BLOCK)).amax(2) < 0, -torch.inf)  # nothing of the head's in it
        asked = promised.sort(dim=1, descending=True, stable=True).indices[:, : self.recall].sort(dim=1).values
        blocks = self.read(asked)
        positions = self.positions.unflatten(1, (-1, BLOCK)).gather(1, asked[..., None].expand(-1, -1, BLOCK)).flatten(1).long()
        return met(query, blocks[:, :, 0].flatten(1, 2), blocks[:, :, 1].flatten(1, 2), positions)

    def read(self, asked: Tensor) -> Tensor:
        """Blocks [K, recall, 2, 16, E] of numbers [K, recall]."""
        on_disk = np.memmap(self.path, np.uint8, "r").reshape(*self.shape[:4], -1)
        heads = np.arange(self.shape[0])[:, None]
        return torch.from_numpy(np.ascontiguousarray(on_disk[heads, asked.numpy()])).view(self.dtype)
