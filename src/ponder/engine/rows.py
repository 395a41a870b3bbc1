"""Working copies of the prefixes being computed: one contiguous row of keys and values each, in banks of equal length.

The length of a bank is the padded key length that attention is called with. It is a function of how many tokens a row
holds, never of what else is running, and that is what makes answers independent of the batch (engine.attend). A row that
outgrows its bank moves to the next. Rows of one bank lie side by side, so neighbours share one attention call.

Shapes: L layers, R rows of a bank, C its length, K key heads, E head width; 2 is (keys, values).
"""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.formats import ModelConfig

GRID = 16  # every padded length is a multiple: the kernel's vector tails would change results otherwise


def padded_len(num_tokens: int) -> int:
    """Padded key length for a row of `num_tokens`: 64, 128, 192, 256, 384, 512, then steps of half a power of two."""
    length = 64
    while length < num_tokens:
        length += 64 if length < 256 else 1 << (length.bit_length() - 2)
    return length


class Bank:
    """Rows of one padded length. The table doubles when full. Unused parts are zero or stale, always finite."""

    def __init__(self, config: ModelConfig, length: int, dtype: torch.dtype) -> None:
        self.length = length
        self.table = torch.zeros(config.num_layers, 2, 0, length, config.num_kv_heads, config.head_dim, dtype=dtype)
        self.free: list[int] = []
        self.keys: list[Tensor] = []  # per layer [R, C, K, E]
        self.values: list[Tensor] = []

    def take(self) -> int:
        """The lowest free row, so that rows in use stay close together."""
        if not self.free:
            size = self.table.shape[2]
            more = self.table.new_zeros(*self.table.shape[:2], max(2, size), *self.table.shape[3:])
            self.table = torch.cat([self.table, more], 2)
            self.free = list(range(size, self.table.shape[2]))
            self.keys, self.values = list(self.table[:, 0]), list(self.table[:, 1])
        return heapq.heappop(self.free)


@dataclass(eq=False)
class Row:
    """A place in a bank."""

    bank: Bank
    index: int

    def kv(self, stop: int) -> Tensor:
        """The first `stop` tokens, [L, 2, stop, K, E]: a view, valid until the bank grows."""
        return self.bank.table[:, :, self.index, :stop]


class Rows:
    """All banks of a process."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.banks: dict[int, Bank] = {}

    @property
    def nbytes(self) -> int:
        return sum(bank.table.nbytes for bank in self.banks.values())

    def take(self, num_tokens: int) -> Row:
        """A row that has room for num_tokens."""
        length = padded_len(num_tokens)
        if length not in self.banks:
            self.banks[length] = Bank(self.config, length, self.dtype)
        bank = self.banks[length]
        return Row(bank, bank.take())

    def release(self, row: Row) -> None:
        heapq.heappush(row.bank.free, row.index)

    def grown(self, row: Row, num_tokens: int, num_kept: int) -> Row:
        """`row`, or a longer one with its first num_kept tokens copied, so that there is room for num_tokens."""
        if num_tokens <= row.bank.length:
            return row
        longer = self.take(num_tokens)
        longer.kv(num_kept).copy_(row.kv(num_kept))
        self.release(row)
        return longer
