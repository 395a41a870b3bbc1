"""Pages of keys and values, and the sequences that live in them.

A page holds PAGE slots of one layer and one key head, and a count of who refers to it. A sequence is a table of pages per layer
and head, so heads may keep different numbers of keys, and a fork is a copy of the table. A page that others refer to is copied
before it is written (copy on write). Keys lie there as attention needs them, already rotated, each with its position beside it.

On the CPU memory is reserved at once and given real memory by the system as pages are first written; `trim` gives idle pages back.
On another device all of it is taken at once. Tables and counts stay on the host. One page more than can be taken is nobody's:
rows that only fill up a step of fixed size write there.

Shapes: L layers, K key heads, E head width, P pages, N tokens.
"""

import itertools
import math
import mmap
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

PAGE = 16  # slots of a page
TRIM_NBYTES = 1 << 26  # idle memory that is worth giving back

Ids = np.ndarray  # int32 page numbers
NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class KVFormat:
    """How a slot is stored: as computed, or as int8 with one float32 scale per slot (largest magnitude / 127)."""

    name: str
    dtype: torch.dtype | None = None  # None: that of the model's activations
    is_scaled: bool = False


PLAIN = KVFormat(name="plain")
INT8 = KVFormat(name="int8", dtype=torch.int8, is_scaled=True)


CPU = torch.device("cpu")


def reserve(shape: tuple[int, ...], dtype: torch.dtype, maps: list[tuple[mmap.mmap, int]], device: torch.device = CPU) -> Tensor:
    """A tensor of zeros that takes no memory until it is written, if on the CPU. Notes (mapping, bytes per page) in `maps`."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    nbytes = max(1, math.prod(shape) * dtype.itemsize)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # keys are scattered: with small pages a core reads them at half the speed
    maps.append((memory, nbytes // max(1, shape[0])))
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


class Pool:
    """All pages of a process. shape: (L, K, E); `max_bytes` bounds it, positions and scales included."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, max_bytes: int, kv_format: KVFormat = PLAIN, *, device: torch.device = CPU
    ) -> None:
        self.num_layers, self.num_kv_heads, self.width = shape
        self.dtype, self.kv_format, self.device = dtype, kv_format, device
        stored = kv_format.dtype or dtype
        self.page_nbytes = PAGE * (2 * self.width * stored.itemsize + 4 + (8 if kv_format.is_scaled else 0))
        self.num_pages = max_bytes // self.page_nbytes
        self.maps: list[tuple[mmap.mmap, int]] = []
        slots = (self.num_pages + 1, PAGE)  # the last page is nobody's
        self.keys, self.values = (reserve((*slots, self.width), stored, self.maps, device) for _ in range(2))
        self.positions = reserve(slots, torch.int32, self.maps, device)
        self.scales: tuple[Tensor, Tensor] | None = None
        if kv_format.is_scaled:
            self.scales = (reserve(slots, torch.float32, self.maps, device), reserve(slots, torch.float32, self.maps, device))
        self.refs = np.zeros(self.num_pages, np.int32)
        self.births = np.zeros(self.num_pages, np.int64)  # of each page, when it was last taken: what is written full stays while it does
        self.is_touched = np.zeros(self.num_pages, bool)  # has real memory
        self.free = np.arange(self.num_pages - 1, -1, -1, dtype=np.int32)  # a stack: the lowest page is taken first
        self.num_free = self.num_pages

    @property
    def heads(self) -> int:
        """Pages that one run of PAGE tokens takes: one per layer and key head."""
        return self.num_layers * self.num_kv_heads

    @property
    def nobody(self) -> int:
        """The page that nobody can take."""
        return self.num_pages

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    @property
    def nbytes(self) -> int:
        """Bytes that the system holds for pages, idle ones included until `trim`."""
        num = int(self.is_touched.sum()) if self.maps else self.num_pages
        return num * self.page_nbytes

    def take(self, num: int) -> Ids | None:
        """`num` pages with one reference each, or None when there are not so many."""
        if num > self.num_free:
            return None
        taken = self.free[self.num_free - num : self.num_free][::-1].copy()
        self.num_free -= num
        self.refs[taken] = 1
        self.births[taken] = next(NUMBERS)
        self.is_touched[taken] = True
        return taken

    def share(self, pages: Ids) -> None:
        """One more reference to each of `pages` (distinct)."""
        self.refs[pages.ravel()] += 1

    def drop(self, pages: Ids) -> None:
        """One reference less; a page without any is free."""
        pages = pages.ravel()
        self.refs[pages] -= 1
        freed = pages[self.refs[pages] == 0]
        self.free[self.num_free : self.num_free + len(freed)] = freed[::-1]
        self.num_free += len(freed)

    def trim(self, at_least: int = TRIM_NBYTES) -> int:
        """Gives idle pages back to the system when they are worth it; returns their bytes."""
        idle = np.flatnonzero(self.is_touched & (self.refs == 0))
        if not self.maps or len(idle) * self.page_nbytes < at_least or not hasattr(mmap, "MADV_DONTNEED"):
            return 0
        runs = np.split(idle, np.flatnonzero(np.diff(idle) > 1) + 1)
        for memory, size in self.maps:
            for run in runs:
                start, stop = (-(-int(run[0]) * size // mmap.PAGESIZE), (int(run[-1]) + 1) * size // mmap.PAGESIZE)
                if start < stop:
                    memory.madvise(mmap.MADV_DONTNEED, start * mmap.PAGESIZE, (stop - start) * mmap.PAGESIZE)
        self.is_touched[idle] = False
        self.free[: self.num_free] = np.sort(self.free[: self.num_free])[::-1]
        return len(idle) * self.page_nbytes

    def copy(self, source: Ids, target: Ids) -> None:
        pairs = (self.keys, self.values, self.positions, *(self.scales or ()))
        old, new = self.on_device(source), self.on_device(target)
        for table in pairs:
            table.index_copy_(0, new, table.index_select(0, old))

    def on_device(self, numbers: np.ndarray) -> Tensor:
        """int64 where the pages are."""
        return torch.from_numpy(numbers.astype(np.int64)).to(self.device)

    def write(self, slots: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Rows k, v [n, E] into flat slots [n] (page * PAGE + place) at positions [n]."""
        for i, (table, rows) in enumerate(((self.keys, k), (self.values, v))):
            if self.scales is not None:
                scale = rows.float().abs().amax(-1) / 127
                self.scales[i].view(-1).index_copy_(0, slots, scale)
                rows = (rows.float() / scale.clamp(min=1e-30)[:, None]).round_().to(torch.int8)
            table.view(-1, self.width).index_copy_(0, slots, rows)
        self.positions.view(-1).index_copy_(0, slots, positions.to(torch.int32))

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [..., n * PAGE, E] in the model's dtype of pages [..., n]: a copy."""
        return self.read_keys(pages), self._read(1, pages)

    def read_keys(self, pages: Tensor) -> Tensor:
        """The keys of `read` alone."""
        return self._read(0, pages)

    def rows(self, which: int, slots: Tensor) -> Tensor:
        """Keys (0) or values (1) [n, E] in the model's dtype of flat slots [n] (page * PAGE + place): a copy."""
        rows = (self.keys, self.values)[which].view(-1, self.width).index_select(0, slots)
        if self.scales is not None:
            rows = rows.float().mul_(self.scales[which].view(-1).index_select(0, slots)[:, None]).to(self.dtype)
        return rows

    def _read(self, which: int, pages: Tensor) -> Tensor:
        rows = (self.keys, self.values)[which].index_select(0, pages.reshape(-1))
        if self.scales is not None:
            rows = rows.float().mul_(self.scales[which].index_select(0, pages.reshape(-1))[..., None]).to(self.dtype)
        return rows.view(*pages.shape[:-1], -1, self.width)


class Sequence:
    """One sequence's pages. `num_tokens` were written so far; heads that dropped keys (`keep`) hold fewer.

    table int32 [L, K, capacity]; num_pages and dropped int32 [L, K]. Raises nothing: `reserve` says False when memory is short.
    """

    def __init__(self, pool: Pool, pages: Ids | None = None, num_tokens: int = 0) -> None:
        """pages [L, K, n] are shared with whoever holds them; they hold the first num_tokens."""
        self.pool, self.num_tokens = pool, num_tokens
        self.number = next(NUMBERS)  # unlike id(), never given again
        self.version = 0  # changes of table, num_pages and dropped
        num = 0 if pages is None else pages.shape[2]
        self.table = np.zeros((pool.num_layers, pool.num_kv_heads, max(8, num + 4)), np.int32)
        self.num_pages = np.full(self.table.shape[:2], num, np.int32)
        self.dropped = np.zeros(self.table.shape[:2], np.int32)
        self.is_ragged = False
        if pages is not None and num:
            self.table[:, :, :num] = pages
            pool.share(pages)

    @property
    def capacity(self) -> int:
        """Tokens that fit before another page is needed."""
        return int((self.num_pages * PAGE + self.dropped).min())

    def needed(self, num_tokens: int) -> int:
        """Pages that `reserve(num_tokens)` would take."""
        return int(np.maximum(self._num_for(num_tokens) - self.num_pages, 0).sum()) + len(self._shared_last()[0])

    def reserve(self, num_tokens: int) -> bool:
        """Makes room for num_tokens in all, and the page that the next token goes to this sequence's own."""
        if num_tokens <= self.capacity and not ((self.num_tokens % PAGE or self.is_ragged) and self._is_last_shared()):
            return True
        wanted = self._num_for(num_tokens)
        missing = int(np.maximum(wanted - self.num_pages, 0).sum())
        where = self._shared_last()
        taken = self.pool.take(missing + len(where[0]))
        if taken is None:
            return False
        if len(where[0]):
            old, new = self.table[where], taken[missing:]
            self.pool.copy(old, new)
            self.table[where] = new
            self.version += 1
            self.pool.drop(old)
        if missing:
            self._append(wanted, taken[:missing])
        return True

    def release(self) -> None:
        self.pool.drop(self.table[self._is_held()])
        self.num_pages[:] = 0
        self.num_tokens = 0

    def fork(self) -> "Sequence":
        """A sequence of its own with the same content: shares every page."""
        other = Sequence(self.pool)
        other.table, other.num_pages, other.dropped = self.table.copy(), self.num_pages.copy(), self.dropped.copy()
        other.num_tokens, other.is_ragged = self.num_tokens, self.is_ragged
        self.pool.share(self.table[self._is_held()])
        return other

    def branch(self) -> "Sequence":
        """A fork that shares nothing but the pages of what was written: what either writes next never meets the other."""
        other = Sequence(self.pool)
        other.table, other.num_pages = self.table.copy(), np.minimum(self.num_pages, self._num_for(self.num_tokens))
        other.dropped, other.num_tokens, other.is_ragged = self.dropped.copy(), self.num_tokens, self.is_ragged
        self.pool.share(other.table[other._is_held()])
        return other

    def keep(self, layer: int, head: int, places: Ids) -> bool:
        """Keeps only the keys at `places` (ascending indices among those the head holds) and frees the rest.

        In place where nobody else refers to the pages, else to new ones. False, and nothing changed, when there is no page to move them to.
        """
        pool, num, num_pages = self.pool, len(places), -(-len(places) // PAGE)
        old = self.table[layer, head, : self.num_pages[layer, head]].copy()
        is_own = bool((pool.refs[old[:num_pages]] == 1).all())
        new = old[:num_pages] if is_own else pool.take(num_pages)
        if new is None:
            return False
        source = pool.on_device(old[places // PAGE].astype(np.int64) * PAGE + places % PAGE)
        target = pool.on_device(new[np.arange(num) // PAGE].astype(np.int64) * PAGE + np.arange(num) % PAGE)
        for table in (pool.keys, pool.values, pool.positions, *(pool.scales or ())):
            flat = table.view(len(table) * PAGE, -1)
            flat.index_copy_(0, target, flat.index_select(0, source))
        pool.drop(old[num_pages:] if is_own else old)
        self.dropped[layer, head] += self.num_held(layer, head) - num
        self.table[layer, head, :num_pages] = new
        self.num_pages[layer, head] = num_pages
        self.is_ragged = True
        self.renew()
        return True

    def renew(self) -> None:
        """What was known of its pages is so no more."""
        self.number = next(NUMBERS)
        self.version += 1

    def num_held(self, layer: int, head: int) -> int:
        """Keys of a head."""
        return self.num_tokens - int(self.dropped[layer, head])

    def rewrite(self, layer: int, head: int, k: Tensor, v: Tensor) -> None:
        """Other keys and values [n, E] for a head that `keep` has just left with n: their positions stay."""
        at = np.arange(len(k))
        slots = self.pool.on_device(self.table[layer, head][at // PAGE].astype(np.int64) * PAGE + at % PAGE)
        self.pool.write(slots, k, v, self.pool.positions.view(-1)[slots])

    def slots(self, layer: int, start: int, stop: int) -> Tensor:
        """int64 [stop - start, K]: flat slots of tokens start..stop."""
        at = np.arange(start, stop)[:, None] - self.dropped[layer][None]
        pages = self.table[layer][np.arange(self.pool.num_kv_heads)[None], at // PAGE]
        return self.pool.on_device(pages.astype(np.int64) * PAGE + at % PAGE)

    def _num_for(self, num_tokens: int) -> np.ndarray:
        return cast(np.ndarray, -(-(num_tokens - self.dropped) // PAGE))

    def _is_held(self) -> np.ndarray:
        return cast(np.ndarray, np.arange(self.table.shape[2]) < self.num_pages[..., None])

    def _is_last_shared(self) -> bool:
        """Whether the page of the next token has other readers (plain sequences: that of one head tells)."""
        return bool(self.is_ragged or self.pool.refs[self.table[0, 0, self.num_tokens // PAGE]] > 1)

    def _shared_last(self) -> tuple[np.ndarray, ...]:
        """Where (layer, head, place) the page that the next token goes to exists, holds keys, and has other readers."""
        held = self.num_tokens - self.dropped
        place = held // PAGE
        has_keys = (held % PAGE > 0) & (place < self.num_pages)
        pages = np.take_along_axis(self.table, np.minimum(place, self.table.shape[2] - 1)[..., None], 2)[..., 0]
        layer, head = np.nonzero(has_keys & (self.pool.refs[pages] > 1))
        return layer, head, place[layer, head]

    def _append(self, wanted: np.ndarray, pages: Ids) -> None:
        most = int(wanted.max())
        self.version += 1
        if most > self.table.shape[2]:
            self.table = np.concatenate([self.table, np.zeros((*self.table.shape[:2], most), np.int32)], 2)
        at = np.arange(self.table.shape[2])
        self.table[(at >= self.num_pages[..., None]) & (at < wanted[..., None])] = pages
        self.num_pages = np.maximum(self.num_pages, wanted)
