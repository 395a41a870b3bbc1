"""Attention of a step on another device: pages lie there, tables are kept there, and tokens of sequences that generate are met in fixed shapes.

A step's single tokens are one batch. Each meets its keys in pieces of `chunk`, a prefix that several share once for all of them where
that saves enough; pieces leave (out, lse) and are merged exactly (native/paged.py, by Triton). Without Triton, and as its oracle, the
keys are gathered and PyTorch attends. Longer spans gather their sequence's keys and meet them in one call of PyTorch's.

Sums here depend on shapes: answers are equal alone and in a crowd up to rounding, not bit for bit as on the CPU.

Shapes: T flat tokens, B single tokens, H query heads, K key heads, G = H / K, E head width, L layers, C pages of a table, N keys.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span, StepPlan, attention_reference, shared_runs, slots_of
from ponder.engine.pages import PAGE, Pool, Sequence
from ponder.native import paged
from ponder.native.attention import BLOCK
from ponder.native.paged import Batch, Paged

MIN_PAGES, MIN_CARD_PAGES = 16, 256  # of a table, and of one on a card, where larger ones mean that steps are recorded anew
MIN_CHUNK, MAX_CHUNK = 64, 1024  # keys of a piece
MIN_SHARED_CHUNK = 128  # of one that several tokens meet: each piece is one more to merge for all of them
NUM_PROGRAMS = 264  # that keep a large card busy: two for each of its processors
MIN_SAVED = 4096  # keys that sharing prefixes must spare a step; its results are merged once more
MAX_LEVELS = 4  # of shared prefixes


class Tables:
    """Page tables of running sequences on the device. The last row is nobody's: all its pages are the pool's page of nobody."""

    def __init__(self, pool: Pool, num_rows: int) -> None:
        self.pool, self.num_rows = pool, num_rows
        self.resized = 0  # how often the tensors were replaced
        self._make(MIN_CARD_PAGES if pool.device.type == "cuda" else MIN_PAGES)

    def _make(self, capacity: int) -> None:
        shape = (self.num_rows + 1, self.pool.num_layers, self.pool.num_kv_heads)
        self.pages = torch.full((*shape, capacity), self.pool.nobody, dtype=torch.int32, device=self.pool.device)
        self.dropped = torch.zeros(shape, dtype=torch.int32, device=self.pool.device)
        self.held: dict[int, tuple[int, int]] = {}  # sequence number -> (row, version), longest unused first
        self.free = list(range(self.num_rows))

    def rows(self, sequences: Seq[Sequence]) -> list[int]:
        """Each sequence's row, up to date. At most num_rows of them."""
        given, sequences = sequences, list(dict.fromkeys(sequences))
        most = max(int(s.num_pages.max()) for s in sequences)
        if most > self.pages.shape[3]:
            self._make(1 << (most - 1).bit_length())
            self.resized += 1
        stale: list[tuple[int, Sequence]] = []
        rows: dict[Sequence, int] = {}
        for sequence in sequences:  # those of this step become the latest: none of them is given away below
            if (found := self.held.pop(sequence.number, None)) is not None:
                self.held[sequence.number] = found
        for sequence in sequences:
            row, version = self.held.get(sequence.number, (-1, -1))
            if row < 0:
                row = self.free.pop() if self.free else self.held.pop(next(iter(self.held)))[0]
            if version != sequence.version:
                stale.append((row, sequence))
                self.held[sequence.number] = row, sequence.version
            rows[sequence] = row
        if stale:
            self._send(stale)
        return [rows[sequence] for sequence in given]

    def _send(self, stale: Seq[tuple[int, Sequence]]) -> None:
        pages = np.full((len(stale), *self.pages.shape[1:]), self.pool.nobody, np.int32)
        for page, (_, sequence) in zip(pages, stale):
            width = min(page.shape[2], sequence.table.shape[2])
            held = np.arange(width) < sequence.num_pages[..., None]
            page[:, :, :width][held] = sequence.table[:, :, :width][held]
        rows = torch.tensor([row for row, _ in stale], device=self.pool.device)
        self.pages.index_copy_(0, rows, torch.from_numpy(pages).to(self.pool.device))
        dropped = np.stack([sequence.dropped for _, sequence in stale])
        self.dropped.index_copy_(0, rows, torch.from_numpy(dropped).to(self.pool.device))


@dataclass(frozen=True)
class Pieces:
    """Pieces of a batch on the host (native.paged.Batch), rows of (first token, tokens, slot, first key, key after the last)."""

    single: list[tuple[int, int, int, int, int]]
    shared: list[tuple[int, int, int, int, int]]
    num_parts: list[int]


def chunk_of(num_tokens: int, num_kv_heads: int, num_keys: int) -> int:
    """Keys of a piece: as many as leave the card NUM_PROGRAMS programs."""
    wanted = num_keys * num_tokens * num_kv_heads // NUM_PROGRAMS
    return min(MAX_CHUNK, max(MIN_CHUNK, 1 << max(0, wanted - 1).bit_length()))


def cut_pieces(spans: Seq[Span], chunk: int, config: ModelConfig, is_shared: bool) -> Pieces:
    """Every token's keys, each in one piece: those that enough sequences share once, in the order of their tree, then its own."""
    runs = sorted(shared_runs(spans, is_shared), key=lambda run: run[5])
    owners = [span.sequence.number for span in spans]
    saved = sum((len(set(owners[first:last])) - 1) * (stop - begin) * BLOCK for first, last, _, begin, stop, _ in runs if stop >= 0)
    if is_shared and (saved < MIN_SAVED or max(run[5] for run in runs) > MAX_LEVELS):
        return cut_pieces(spans, chunk, config, False)
    num_kv_heads = config.num_kv_heads
    single, shared, num_parts = [], [], [0] * len(spans)
    step = paged.tokens_of_a_shared_piece(config.num_heads // num_kv_heads)
    for first, last, _, begin, stop, _ in runs:
        start, end = begin * BLOCK, spans[first].stop if stop < 0 else stop * BLOCK
        size = chunk if stop < 0 else max(MIN_SHARED_CHUNK, min(chunk, chunk_of(-(-(last - first) // step), num_kv_heads, end - start)))
        for at in range(start, end, size):
            slot, until = num_parts[first], at + size if stop < 0 else min(at + size, end)
            if stop < 0:
                single.append((first, 1, slot, at, until))
            else:
                shared += [(token, min(step, last - token), slot, at, until) for token in range(first, last, step)]
            num_parts[first:last] = [slot + 1] * (last - first)
    return Pieces(single, shared, num_parts)


def whole_pieces(num_tokens: int, chunk: int, num_keys: int) -> Pieces:
    """Every token's keys in pieces of its own, as many as num_keys may need: a token reads its keys of each, none of those beyond its place."""
    starts = range(0, num_keys, chunk)
    single = [(token, 1, slot, at, at + chunk) for token in range(num_tokens) for slot, at in enumerate(starts)]
    return Pieces(single, [], [len(starts)] * num_tokens)


class DeviceAttention(Attention):
    """The attention of a process on another device."""

    def __init__(self, config: ModelConfig, pool: Pool, *, num_rows: int, is_shared: bool = True, is_native: bool = True) -> None:
        """num_rows: most sequences of a step. is_native False: by PyTorch even where Triton is."""
        super().__init__(config, pool, is_native=False, is_shared=is_shared)
        self.tables = Tables(pool, num_rows)
        self.has_kernels = is_native and paged.is_here(pool.device)

    @property
    def name(self) -> str:
        return "/paged" if self.has_kernels else "/gathered"

    def plan(self, spans: Seq[Span]) -> "DevicePlan":
        return DevicePlan(self, spans)

    def batch(self, spans: Seq[Span]) -> Batch:
        """Single tokens as a batch of exactly their number."""
        device, num_keys = self.pool.device, max(span.stop for span in spans)
        pieces = cut_pieces(spans, self.chunk(len(spans), num_keys), self.config, self.is_shared)
        return Batch(
            rows=torch.tensor(self.tables.rows([span.sequence for span in spans]), device=device),
            places=torch.tensor([span.start for span in spans], device=device),
            single=torch.tensor(pieces.single, dtype=torch.int32, device=device),
            shared=torch.tensor(pieces.shared, dtype=torch.int32, device=device) if pieces.shared else None,
            num_parts=torch.tensor(pieces.num_parts, dtype=torch.int32, device=device),
            max_parts=max(pieces.num_parts),
        )

    def chunk(self, num_tokens: int, num_keys: int) -> int:
        return chunk_of(num_tokens, self.config.num_kv_heads, num_keys)

    @property
    def paged(self) -> Paged:
        pool, tables = self.pool, self.tables
        return Paged(
            keys=pool.keys, values=pool.values, scales=pool.scales, positions=pool.positions, tables=tables.pages, dropped=tables.dropped
        )  # fmt: skip

    def write(self, batch: Batch, layer: int, k_BKE: Tensor, v_BKE: Tensor) -> None:
        """Keys and values of a batch's tokens into their pages."""
        if self.has_kernels:
            k_BKE, v_BKE = (x if x.stride(-2) == x.shape[-1] else x.contiguous() for x in (k_BKE, v_BKE))
            paged.write(self.paged, batch, layer, k_BKE=k_BKE, v_BKE=v_BKE)
            return
        index_BK = batch.places[:, None] - self.tables.dropped[:, layer].index_select(0, batch.rows)
        pages_BKC = self.tables.pages[:, layer].index_select(0, batch.rows)
        slots_BK = pages_BKC.gather(2, (index_BK // PAGE)[..., None])[..., 0].long() * PAGE + index_BK % PAGE
        positions = batch.places[:, None].expand_as(slots_BK).reshape(-1)
        self.pool.write(slots_BK.reshape(-1), k_BKE.reshape(-1, self.pool.width), v_BKE.reshape(-1, self.pool.width), positions)

    def read(self, batch: Batch, layer: int, q_BHE: Tensor, num_pages: int) -> tuple[Tensor, Tensor]:
        """(out [B, H * E], lse float32 [B, H]) of what a batch's tokens read. num_pages: of the longest table in use, or more."""
        config = self.config
        if not self.has_kernels:
            return read_gathered(self, batch, layer, q_BHE, num_pages=num_pages)
        q_BHE = q_BHE if q_BHE.stride(-2) == q_BHE.shape[-1] else q_BHE.contiguous()
        return paged.read(self.paged, batch, layer, q_BHE, window=config.window(layer) or 0, softcap=config.attn_softcap or 0.0)


def read_gathered(attention: DeviceAttention, batch: Batch, layer: int, q_BHE: Tensor, *, num_pages: int) -> tuple[Tensor, Tensor]:
    """DeviceAttention.read by PyTorch, in float32: the fallback without Triton, and its oracle."""
    config, pool, tables = attention.config, attention.pool, attention.tables
    pages_BKC = tables.pages[:, layer, :, :num_pages].index_select(0, batch.rows).long()
    keys, values = pool.read(pages_BKC)
    places = batch.places[:, None, None]
    limits = places + 1 - tables.dropped[:, layer].index_select(0, batch.rows)[..., None]
    seen_BKN = torch.arange(num_pages * PAGE, device=pool.device) < limits
    if (window := config.window(layer)) is not None:
        positions = pool.positions.index_select(0, pages_BKC.reshape(-1)).view(seen_BKN.shape)
        seen_BKN = seen_BKN & (positions > places - window)
    mask = torch.where(seen_BKN, 0.0, -math.inf)[:, :, None]
    q_BKGE = q_BHE.unflatten(1, (config.num_kv_heads, -1))
    out_BKGE, lse_BKG = attention_reference(q_BKGE, keys, values, mask, softcap=config.attn_softcap)
    return out_BKGE.flatten(1), lse_BKG.flatten(1)


@dataclass(frozen=True)
class Long:
    """A span of several tokens, or of prompt tokens: flat tokens lo:hi and the pages [L, K, C] of all keys that it may see."""

    span: Span
    lo: int
    hi: int
    pages: Tensor


class DevicePlan(StepPlan):
    """The attention of any step, in operations that the host issues one by one. Single spans come first (`in_order`)."""

    def __init__(self, attention: DeviceAttention, spans: Seq[Span]) -> None:
        super().__init__(attention, spans)
        self.attention, device = attention, self.pool.device
        self.positions = self.positions.to(device)
        singles = [span for span in spans if span.is_single]
        self.num_singles, self.batch = len(singles), attention.batch(singles) if singles else None
        self.num_pages = max((-(-span.stop // PAGE) for span in singles), default=0)
        self.longs, lo = [], len(singles)
        for span in spans[len(singles) :]:
            hi = lo + span.stop - span.start
            self.longs.append(Long(span, lo, hi, self.pool.on_device(span.sequence.table[:, :, : -(-span.stop // PAGE)])))
            lo = hi
        self.slots = None if not self.longs else self.pool.on_device(np.concatenate([slots_of(long.span) for long in self.longs], 1))
        self.copied = None if not len(self.copies) else self.pool.on_device(self.copies[:, 0])  # flat tokens that are written elsewhere too
        self.copy_to = None if self.copied is None else self.pool.on_device(self.copy_slots())

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        return self.attend_with_lse(layer, q_THE, k_TKE, v_TKE, has_lse=False)[0]

    def attend_with_lse(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, *, has_lse: bool = True) -> tuple[Tensor, Tensor]:
        """attend, and the log of the sum of exponentiated scores, float32 [T, H]; has_lse False: of single tokens alone."""
        num, width = self.num_singles, self.pool.width
        found = []
        if self.batch is not None:
            self.attention.write(self.batch, layer, k_TKE[:num], v_TKE[:num])
        if self.slots is not None:
            positions = self.positions[num:, None].expand(-1, k_TKE.shape[1]).reshape(-1)
            self.pool.write(self.slots[layer].reshape(-1), k_TKE[num:].reshape(-1, width), v_TKE[num:].reshape(-1, width), positions)
        if self.copied is not None and self.copy_to is not None:
            positions = self.positions[self.copied, None].expand(-1, k_TKE.shape[1]).reshape(-1)
            k, v = k_TKE[self.copied].reshape(-1, width), v_TKE[self.copied].reshape(-1, width)
            self.pool.write(self.copy_to[layer].reshape(-1), k, v, positions)
        if self.batch is not None:
            found.append(self.attention.read(self.batch, layer, q_THE[:num], self.num_pages))
        found += [self._long(long, layer, q_THE[long.lo : long.hi], has_lse) for long in self.longs]
        return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])

    def _long(self, long: Long, layer: int, q_NHE: Tensor, has_lse: bool) -> tuple[Tensor, Tensor]:
        config, span, num = self.config, long.span, len(q_NHE)
        keys, values = (x[None] for x in self.pool.read(long.pages[layer]))
        window = config.window(layer)
        is_whole = span.start == 0 and span.parents is None and not span.sequence.is_ragged and (window is None or num <= window)
        if is_whole and not has_lse and config.attn_softcap is None:
            keys, values = keys[:, :, :num], values[:, :, :num]
            out = F.scaled_dot_product_attention(q_NHE.transpose(0, 1)[None], keys, values, is_causal=True, enable_gqa=True)
            return out[0].transpose(0, 1).flatten(1), q_NHE.new_empty(0, config.num_heads, dtype=torch.float32)
        seen = self._seen(long, layer, keys.shape[2])  # [1 or K, N, keys]
        q_KME = q_NHE.unflatten(1, (config.num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)[None]  # rows of a key head: G, then N
        mask = torch.where(seen, 0.0, -math.inf).repeat(1, q_KME.shape[2] // num, 1)[None]
        if has_lse or config.attn_softcap is not None:
            out, lse = attention_reference(q_KME, keys, values, mask, softcap=config.attn_softcap)
        else:
            out, lse = F.scaled_dot_product_attention(q_KME, keys, values, attn_mask=mask.to(q_KME.dtype)), None
        out_NX = out[0].unflatten(1, (-1, num)).permute(2, 0, 1, 3).reshape(num, -1)
        lse_NH = (
            q_NHE.new_empty(0, config.num_heads, dtype=torch.float32) if lse is None else lse[0].unflatten(1, (-1, num)).permute(2, 0, 1).flatten(1)
        )
        return out_NX, lse_NH

    def _seen(self, long: Long, layer: int, num_keys: int) -> Tensor:
        """bool [1 or K, N, num_keys]: which keys of the table each of a span's tokens sees."""
        span, device = long.span, self.pool.device
        dropped = self.pool.on_device(span.sequence.dropped[layer] if span.sequence.is_ragged else np.zeros(1))
        place = torch.arange(num_keys, device=device) + dropped[:, None]  # of each key in its sequence, beyond the dropped ones
        own = torch.arange(span.start, span.stop, device=device)
        if span.parents is None:
            seen = place[:, None] <= own[:, None]
        else:
            seen = (place[:, None] < span.start).expand(-1, len(own), -1).clone()
            tail = torch.from_numpy(span.sees()).to(device)
            for head, skipped in enumerate(dropped.tolist()):
                seen[head, :, span.start - skipped : span.stop - skipped] = tail
        if (window := self.config.window(layer)) is not None:
            positions = self.pool.positions.index_select(0, long.pages[layer].reshape(-1)).view(-1, 1, num_keys)
            seen = seen & (positions > self.positions[long.lo : long.hi, None] - window)
        return seen
