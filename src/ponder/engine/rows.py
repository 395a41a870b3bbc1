"""Working copies of the prefixes being computed: one contiguous row of keys and values each, in banks of equal length.

The length of a bank is the padded key length that attention is called with. It is a function of how many tokens a row
holds, never of what else is running, and that is what makes answers independent of the batch (engine.attend). A row that
outgrows its bank moves to the next. Rows of one bank lie side by side, so neighbours share one attention call.

Shapes: L layers, R rows of a bank, C its length, K key heads, E head width; 2 is (keys, values).
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.core.formats import ModelConfig

GRID = 16  # every padded length is a multiple: the kernel's vector tails would change results otherwise
MAX_VIEWS = 256  # of a bank; each is two small objects per layer
BANK_NBYTES = 1 << 29  # most bytes that one bank reserves, unless a single row needs more


def padded_len(num_tokens: int) -> int:
    """Padded key length for a row of `num_tokens`: 64, 128, 192, 256, 384, 512, then steps of half a power of two."""
    length = 64
    while length < num_tokens:
        length += 64 if length < 256 else 1 << (length.bit_length() - 2)
    return length


class Bank:
    """Rows of one padded length, all reserved at once and given real memory by the system as they are first written.

    Unused parts are zero or stale, always finite.
    """

    def __init__(self, config: ModelConfig, length: int, *, num_rows: int, number: int, dtype: torch.dtype) -> None:
        self.length, self.number = length, number
        shape = (config.num_layers, 2, num_rows, length, config.num_kv_heads, config.head_dim)
        reserved = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)  # unlike torch.zeros, touches nothing
        self.table = torch.from_numpy(reserved).view(dtype).view(shape)
        self.keys, self.values = list(self.table[:, 0]), list(self.table[:, 1])  # per layer [R, C, K, E]
        self.flat_keys, self.flat_values = ([x.flatten(0, 1) for x in layers] for layers in (self.keys, self.values))  # [R * C, K, E]
        self.views: dict[tuple[int, int, int], tuple[list[Tensor], list[Tensor]]] = {}
        self.free = list(range(num_rows))
        self.num_touched = 0

    def take(self) -> int:
        """The lowest free row, so that rows in use stay close together."""
        index = heapq.heappop(self.free)
        self.num_touched = max(self.num_touched, index + 1)
        return index

    def view(self, first: int, last: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer, keys and values [last - first, K, length, E] of rows first:last. Remembered: steps ask for the same again and again."""
        name = (first, last, length)
        if name not in self.views:
            if len(self.views) >= MAX_VIEWS:
                self.views.clear()
            keys, values = ([x[first:last, :length].transpose(1, 2) for x in layers] for layers in (self.keys, self.values))
            self.views[name] = keys, values
        return self.views[name]


@dataclass(eq=False)
class Row:
    """A place in a bank."""

    bank: Bank
    index: int

    def kv(self, stop: int) -> Tensor:
        """The first `stop` tokens, [L, 2, stop, K, E]: a view."""
        return self.bank.table[:, :, self.index, :stop]


class Rows:
    """All banks of a process, each of up to max_rows rows."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, max_rows: int = 64) -> None:
        self.config, self.dtype, self.max_rows = config, dtype, max_rows
        self.banks: dict[int, list[Bank]] = {}  # by padded length

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that were ever used; they are kept for the next."""
        return sum(bank.table[:, :, : bank.num_touched].nbytes for banks in self.banks.values() for bank in banks)

    def take(self, num_tokens: int) -> Row:
        """A row that has room for num_tokens."""
        length = padded_len(num_tokens)
        banks = self.banks.setdefault(length, [])
        bank = next((bank for bank in banks if bank.free), None)
        if bank is None:
            row_nbytes = self.config.num_layers * 2 * length * self.config.num_kv_heads * self.config.head_dim * self.dtype.itemsize
            num_rows = max(1, min(self.max_rows, BANK_NBYTES // row_nbytes))
            bank = Bank(self.config, length, num_rows=num_rows, number=len(banks), dtype=self.dtype)
            banks.append(bank)
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
