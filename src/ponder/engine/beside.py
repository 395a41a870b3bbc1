"""Attention of tokens that meet stretches of keys in several sequences' pages, each at its own distance.

Keys stay where they are and as they are: a query is turned to each stretch, and what it reads there is joined by its log-sum-exp. The
compiled kernel (native/lists.cpp) reads keys one by one, so that a stretch may begin anywhere; PyTorch meets stretch by stretch in float32:
slow, obvious, the oracle. What a token reads depends on its own stretches alone.

Shapes: T flat tokens, N of them that meet stretches, H query heads, K key heads, E head width.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span, StepPlan, Stretch, attention_reference, merge, slots_of
from ponder.engine.pages import PAGE
from ponder.models.rotary import frequencies, rotary_kind, turn_of, turned_by
from ponder.native.lists import Lists, Reading, run_lists, write_rows


class BesideAttention(Attention):
    """The attention of a process some of whose spans name stretches."""

    def plan(self, spans: Seq[Span]) -> StepPlan:
        return BesideStep(self, spans) if any(span.met for span in spans) else super().plan(spans)

    def plain(self, spans: Seq[Span]) -> StepPlan:
        return super().plan(spans)


@dataclass(frozen=True)
class Meeting:
    """The stretches that tokens meet at the same place of their order: at most one each, of the tokens in `of`. turn: int64 [N], 0 for others."""

    of: tuple[tuple[int, Stretch], ...]  # (token, stretch)
    turn: Tensor


class BesideStep(StepPlan):
    """One step: tokens with stretches by these, the rest as ever."""

    def __init__(self, attention: BesideAttention, spans: Seq[Span]) -> None:
        super().__init__(attention, spans)
        self.kernel = attention.kernel
        ends = np.cumsum([span.stop - span.start for span in spans])
        mine = [(span, int(end)) for span, end in zip(spans, ends) if span.met]
        self.at = torch.cat([torch.arange(end - (span.stop - span.start), end) for span, end in mine])
        self.own_slots = np.ascontiguousarray(np.concatenate([slots_of(span) for span, _ in mine], 1))  # [L, N, K]
        self.own_places = np.concatenate([np.arange(span.start, span.stop, dtype=np.int32) for span, _ in mine])
        self.met = [met for span, _ in mine for met in span.met]
        rest = [span for span in spans if not span.met]
        self.rest = attention.plain(rest) if rest else None
        is_rest = torch.ones(len(self.places), dtype=torch.bool)
        is_rest[self.at] = False
        self.rest_at = is_rest.nonzero()[:, 0]
        self.known: dict[tuple[int | None, str], tuple[list[Meeting], tuple[Tensor, Tensor]]] = {}  # by window and kind of rotation
        self.listed: dict[int | None, list[Listed]] = {}  # by window

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        if self.rest is None:
            self._write(layer, k_TKE, v_TKE)
            return self._read(layer, q_THE)
        self._write(layer, k_TKE[self.at], v_TKE[self.at])
        out = q_THE.new_empty(len(q_THE), q_THE.shape[1] * q_THE.shape[2])
        out[self.rest_at] = self.rest.attend(layer, q_THE[self.rest_at], k_TKE[self.rest_at], v_TKE[self.rest_at])  # writes too
        out[self.at] = self._read(layer, q_THE[self.at])
        return out

    def _write(self, layer: int, k_NKE: Tensor, v_NKE: Tensor) -> None:
        slots = self.own_slots[layer]
        if self.kernel is not None:
            write_rows(self.kernel, slots, self.own_places, (k_NKE, v_NKE))
            return
        positions = torch.from_numpy(self.own_places)[:, None].expand(slots.shape).reshape(-1)
        self.pool.write(torch.from_numpy(slots).reshape(-1), k_NKE.flatten(0, 1), v_NKE.flatten(0, 1), positions)

    def _read(self, layer: int, q_NHE: Tensor) -> Tensor:
        """[N, H * E]: all stretches of all tokens, by their place in the order of each."""
        window = self.config.window(layer)
        meetings, turn = self._meetings(window, rotary_kind(self.config, layer))
        q_JNHE = turned_by(q_NHE, turn)
        if self.kernel is not None:
            return self._meet(layer, q_JNHE, self._lists(window, meetings))
        read = torch.zeros(q_NHE.shape, dtype=torch.float32), torch.full(q_NHE.shape[:2], -math.inf)
        for meeting, q in zip(meetings, q_JNHE):
            self._meet_slowly(layer, meeting, q, read)
        return read[0].to(q_NHE.dtype).flatten(1)

    def _meetings(self, window: int | None, kind: str) -> tuple[list[Meeting], tuple[Tensor, Tensor]]:
        """And cos and sin [J, N, 1, E / 2] of all their turns."""
        if (window, kind) not in self.known:
            found: list[Meeting] = []
            met = [[x for s in some if (x := _within(s, place, window)).start < x.stop] for some, place in zip(self.met, self.own_places.tolist())]
            for number in range(max(map(len, met))):
                of = tuple((n, some[number]) for n, some in enumerate(met) if number < len(some))
                turn = torch.zeros(len(met), dtype=torch.int64)
                turn[[n for n, _ in of]] = torch.tensor([stretch.turn for _, stretch in of])
                found.append(Meeting(of, turn))
            cos, sin = turn_of(frequencies(self.config, kind), torch.cat([meeting.turn for meeting in found]))
            self.known[window, kind] = found, (cos.unflatten(0, (len(found), -1)), sin.unflatten(0, (len(found), -1)))
        return self.known[window, kind]

    def _lists(self, window: int | None, meetings: list[Meeting]) -> "list[Listed]":
        if window not in self.listed:
            self.listed[window] = [Listed(self.config, meeting) for meeting in meetings]
        return self.listed[window]

    def _meet(self, layer: int, q_JNHE: Tensor, meetings: "list[Listed]") -> Tensor:
        """By the compiled kernel, which joins what comes later with what was read before."""
        assert self.kernel is not None
        read = q_JNHE.new_empty(q_JNHE.shape[1:], dtype=torch.float32), q_JNHE.new_empty(q_JNHE.shape[1:3], dtype=torch.float32)
        out, cap = q_JNHE.new_empty(q_JNHE.shape[1], q_JNHE.shape[2] * q_JNHE.shape[3]), self.config.attn_softcap or 0.0
        for i, (listed, q) in enumerate(zip(meetings, q_JNHE, strict=True)):
            reading = Reading(q_THE=q, out=read[0], lse=read[1], softcap=cap)
            run_lists(self.kernel, listed.of(layer), reading, is_first=i == 0, into=out if i == len(meetings) - 1 else None)
        return out

    def _meet_slowly(self, layer: int, meeting: Meeting, q_NHE: Tensor, read: tuple[Tensor, Tensor]) -> None:
        for n, stretch in meeting.of:
            slots = torch.from_numpy(_slots(stretch)[layer])
            q = q_NHE[n].unflatten(0, (len(slots), -1))  # [K, G, E]
            keys, values = (self.pool.rows(which, slots.reshape(-1)).view(*slots.shape, -1) for which in (0, 1))
            some, lse = attention_reference(q, keys, values, torch.zeros(()), softcap=self.config.attn_softcap)
            out, total = read[0][n], read[1][n]
            out[:], total[:] = merge([(out.clone(), total.clone()), (some.float().flatten(0, 1), lse.flatten())])


class Listed:
    """A meeting as the compiled kernel is told it, for all layers: keys one by one, where they lie in the pages of whoever wrote them."""

    def __init__(self, config: ModelConfig, meeting: Meeting) -> None:
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        writers = list(dict.fromkeys(stretch.sequence for _, stretch in meeting.of))
        capacity = max(writer.table.shape[2] for writer in writers)
        tables = [np.pad(writer.table, ((0, 0), (0, 0), (0, capacity - writer.table.shape[2]))) for writer in writers]
        self.tables = np.ascontiguousarray(np.concatenate(tables, 1), np.int32)  # [L, writers * K, capacity]
        first = {writer: number * num_kv_heads for number, writer in enumerate(writers)}
        places = [np.tile(np.arange(s.start, s.stop, dtype=np.int32), num_kv_heads) for _, s in meeting.of]
        self.lists = Lists(
            heads=np.concatenate([first[s.sequence] + np.arange(num_kv_heads, dtype=np.int32) for _, s in meeting.of]).astype(np.int32),
            rows=(np.array([n for n, _ in meeting.of])[:, None] * num_heads + np.arange(num_heads)).ravel().astype(np.int32),
            row_ends=(np.arange(1, len(meeting.of) * num_kv_heads + 1) * (num_heads // num_kv_heads)).astype(np.int32),
            keys=np.concatenate(places), key_ends=np.cumsum(np.repeat([s.stop - s.start for _, s in meeting.of], num_kv_heads)).astype(np.int32),
            are_pages=False, table=self.tables[0], start=0,
        )  # fmt: skip

    def of(self, layer: int) -> Lists:
        return replace(self.lists, table=self.tables[layer])


def _within(stretch: Stretch, place: int, window: int | None) -> Stretch:
    """What of a stretch a query of that place meets in a layer with a window."""
    return stretch if window is None else replace(stretch, start=max(stretch.start, place + stretch.turn - window + 1))


def _slots(stretch: Stretch) -> np.ndarray:
    """int64 [L, K, n]: flat slots of its keys."""
    at = np.arange(stretch.start, stretch.stop)
    return stretch.sequence.table[:, :, at // PAGE].astype(np.int64) * PAGE + at % PAGE
