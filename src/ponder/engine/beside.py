"""Attention of tokens that meet stretches of keys in several sequences' pages, each at its own distance.

Keys stay where they are and as they are: a query is turned to each stretch, and what it reads there is joined by its log-sum-exp. The
compiled kernel (native/lists.cpp) reads whole pages where they lie and copies only the beginning of a stretch that begins within a page;
PyTorch meets stretch by stretch in float32: slow, obvious, the oracle. What a token reads depends on its own stretches alone.

Shapes: T flat tokens, N of them that meet stretches, H query heads, K key heads, E head width.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ponder.engine.attend import Attention, Span, StepPlan, Stretch, attention_reference, merge, slots_of
from ponder.engine.pages import PAGE
from ponder.models.rotary import frequencies, rotary_kind, turned
from ponder.native.lists import Lists, pool_of, run_lists, write_rows


class BesideAttention(Attention):
    """The attention of a process some of whose spans name stretches."""

    def plan(self, spans: Seq[Span]) -> StepPlan:
        return BesideStep(self, spans) if any(span.met for span in spans) else super().plan(spans)

    def plain(self, spans: Seq[Span]) -> StepPlan:
        return super().plan(spans)


@dataclass(frozen=True)
class Meeting:
    """The stretches that tokens meet at the same place of their order: at most one each. turn: int64 [N], 0 for those that meet none."""

    turn: Tensor
    of: tuple[tuple[int, Stretch], ...]  # (token, stretch)


class BesideStep(StepPlan):
    """One step: tokens with stretches by these, the rest as ever."""

    def __init__(self, attention: BesideAttention, spans: Seq[Span]) -> None:
        super().__init__(attention, spans)
        self.kernel = attention.kernel
        ends = np.cumsum([span.stop - span.start for span in spans])
        mine = [(span, int(end)) for span, end in zip(spans, ends) if span.met]
        self.at = torch.cat([torch.arange(end - (span.stop - span.start), end) for span, end in mine])
        self.own_slots = np.concatenate([slots_of(span) for span, _ in mine], 1)  # [L, N, K]
        self.own_places = np.concatenate([np.arange(span.start, span.stop, dtype=np.int32) for span, _ in mine])
        self.met = [met for span, _ in mine for met in span.met]
        rest = [span for span in spans if not span.met]
        self.rest = attention.plain(rest) if rest else None
        is_rest = torch.ones(len(self.places), dtype=torch.bool)
        is_rest[self.at] = False
        self.rest_at = is_rest.nonzero()[:, 0]
        self.frequencies = {kind: frequencies(self.config, kind) for kind in ("global", "local", "none")}
        self.meetings: dict[int | None, list[Meeting]] = {}  # by window

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        self._write(layer, k_TKE[self.at], v_TKE[self.at])
        out = q_THE.new_empty(len(q_THE), q_THE.shape[1] * q_THE.shape[2])
        if self.rest is not None:  # writes too
            out[self.rest_at] = self.rest.attend(layer, q_THE[self.rest_at], k_TKE[self.rest_at], v_TKE[self.rest_at])
        out[self.at] = self._read(layer, q_THE[self.at])
        return out

    def _write(self, layer: int, k_NKE: Tensor, v_NKE: Tensor) -> None:
        slots = self.own_slots[layer]
        if self.kernel is not None:
            write_rows(self.kernel, np.ascontiguousarray(slots), self.own_places, (k_NKE, v_NKE))
            return
        positions = torch.from_numpy(self.own_places)[:, None].expand(slots.shape).reshape(-1)
        self.pool.write(torch.from_numpy(slots).reshape(-1), k_NKE.flatten(0, 1), v_NKE.flatten(0, 1), positions)

    def _read(self, layer: int, q_NHE: Tensor) -> Tensor:
        """[N, H * E]: all stretches of all tokens, by their place in the order of each."""
        read = torch.zeros(q_NHE.shape, dtype=torch.float32), torch.full(q_NHE.shape[:2], -math.inf)
        for meeting in self._meetings(self.config.window(layer)):
            q = turned(q_NHE, self.frequencies[rotary_kind(self.config, layer)], meeting.turn)
            if self.kernel is None:
                self._meet_slowly(layer, meeting, q, read)
            else:
                self._meet(layer, meeting, q, read)
        return read[0].to(q_NHE.dtype).flatten(1)

    def _meetings(self, window: int | None) -> list[Meeting]:
        if window not in self.meetings:
            found: list[Meeting] = []
            met = [[x for s in some if (x := _within(s, place, window)).start < x.stop] for some, place in zip(self.met, self.own_places.tolist())]
            for number in range(max(map(len, met))):
                of = tuple((n, some[number]) for n, some in enumerate(met) if number < len(some))
                turn = torch.zeros(len(met), dtype=torch.int64)
                turn[[n for n, _ in of]] = torch.tensor([stretch.turn for _, stretch in of])
                found.append(Meeting(turn, of))
            self.meetings[window] = found
        return self.meetings[window]

    def _meet(self, layer: int, meeting: Meeting, q_NHE: Tensor, read: tuple[Tensor, Tensor]) -> None:
        kernel = self.kernel
        assert kernel is not None
        cap = self.config.attn_softcap or 0.0
        edges = [(n, replace(s, stop=min(s.stop, _whole_from(s)))) for n, s in meeting.of if s.start % PAGE]
        whole = [(n, replace(s, start=_whole_from(s))) for n, s in meeting.of if _whole_from(s) < s.stop]
        if edges:
            keys, values = (torch.zeros(len(edges) * self.pool.num_kv_heads * PAGE, self.pool.width, dtype=self.pool.dtype) for _ in range(2))
            slots = [_slots(layer, s) for _, s in edges]  # [K, n] each
            at = [np.arange(x.shape[1])[None] + PAGE * (np.arange(len(x))[:, None] + i * len(x)) for i, x in enumerate(slots)]
            where, to = (torch.from_numpy(np.concatenate([x.reshape(-1) for x in some])) for some in (slots, at))
            for which, side in enumerate((keys, values)):
                side[to] = self.pool.rows(which, where)
            pages = [np.arange(i * len(x), (i + 1) * len(x))[:, None] for i, x in enumerate(slots)]
            limits = [s.stop - s.start for _, s in edges]
            lists = self._lists([n for n, _ in edges], limits, pages, [0] * len(edges))
            run_lists(kernel, lists, q_NHE, read, softcap=cap, pool=pool_of(keys, values))
        if whole:
            pages = [s.sequence.table[layer][:, s.start // PAGE : -(-s.stop // PAGE)] for _, s in whole]
            lists = self._lists([n for n, _ in whole], [s.stop for _, s in whole], pages, [s.start for _, s in whole])
            run_lists(kernel, lists, q_NHE, read, softcap=cap)

    def _lists(self, tokens: list[int], limits: list[int], pages: list[np.ndarray], starts: list[int]) -> Lists:
        """Each token's heads meet pages [K, P] of which the first begins at place `start`, as far as its limit."""
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        rows = (np.array(tokens)[:, None] * num_heads + np.arange(num_heads)).ravel()
        nums = np.repeat([x.shape[1] for x in pages], num_kv_heads)
        places = [np.tile(start + PAGE * np.arange(x.shape[1]), num_kv_heads) for start, x in zip(starts, pages)]
        return Lists(
            rows=rows.astype(np.int32), limits=np.repeat(limits, num_heads).astype(np.int32),
            row_ends=np.arange(1, len(tokens) * num_kv_heads + 1) * (num_heads // num_kv_heads), page_ends=np.cumsum(nums),
            pages=np.concatenate([x.ravel() for x in pages]).astype(np.int32), places=np.concatenate(places).astype(np.int32),
        )  # fmt: skip

    def _meet_slowly(self, layer: int, meeting: Meeting, q_NHE: Tensor, read: tuple[Tensor, Tensor]) -> None:
        for n, stretch in meeting.of:
            slots = torch.from_numpy(_slots(layer, stretch))
            q = q_NHE[n].unflatten(0, (len(slots), -1))  # [K, G, E]
            keys, values = (self.pool.rows(which, slots.reshape(-1)).view(*slots.shape, -1) for which in (0, 1))
            some, lse = attention_reference(q, keys, values, torch.zeros(()), softcap=self.config.attn_softcap)
            out, total = read[0][n], read[1][n]
            out[:], total[:] = merge([(out.clone(), total.clone()), (some.float().flatten(0, 1), lse.flatten())])


def _within(stretch: Stretch, place: int, window: int | None) -> Stretch:
    """What of a stretch a query of that place meets in a layer with a window."""
    return stretch if window is None else replace(stretch, start=max(stretch.start, place + stretch.turn - window + 1))


def _whole_from(stretch: Stretch) -> int:
    """Where its first whole page begins."""
    return -(-stretch.start // PAGE) * PAGE


def _slots(layer: int, stretch: Stretch) -> np.ndarray:
    """int64 [K, n]: flat slots of its keys."""
    at = np.arange(stretch.start, stretch.stop)
    return stretch.sequence.table[layer][:, at // PAGE].astype(np.int64) * PAGE + at % PAGE
