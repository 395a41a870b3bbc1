"""Attention by a plan (core.attention_plan): each new query meets the lists of keys that the plan gives it, and nothing else.

Keys and values are written first, then the plan is asked layer by layer for each sequence, and its pieces are met by the compiled
kernel (native/lists.cpp), or by PyTorch in float32, list by list: slow, obvious, the oracle. Layers with a window of their own, token
trees and sequences whose heads dropped keys are met as without a plan; so are completion tokens, unless the plan is for them too.

The law is that of engine.attend: what a token reads is a function of the tokens before it. The compiled kernel keeps it bit for bit.

Shapes: T flat tokens, N new tokens of a sequence, H query heads, K key heads, E head width.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ponder.core.attention_plan import KEY_BLOCK, AttentionPlan, Memory, Piece, View
from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span, StepPlan, attention_reference, merge, slots_of
from ponder.engine.pages import PAGE, Pool, Sequence
from ponder.models.rotary import frequencies, rotary_kind, turned
from ponder.native.lists import Lists, Reading, run_lists, write_rows
from ponder.native.row_weights import row_weights

assert PAGE == KEY_BLOCK
NUM_REMEMBERED = 32  # prompts of which a plan's memory is kept after their last sequence


@dataclass
class Met:
    """What answers' tokens met, by a plan, of the keys that were there: pairs of a row and a key."""

    keys: int = 0
    of: int = 0

    def add(self, num: int, view: View) -> None:
        self.keys += num
        self.of += (view.stop - view.start) * (view.start + 1 + view.stop) // 2 * view.num_heads

    def __str__(self) -> str:
        return f"answers met {100 * self.keys / self.of:.1f} % of the keys before them" if self.of else "answers met all keys"


class Memories:
    """What a plan keeps of sequences, by layer. Of a prompt's whole pages for all who have the very same ones."""

    def __init__(self) -> None:
        self.prompts: OrderedDict[bytes, list[dict[str, Tensor]]] = OrderedDict()
        self.own: WeakKeyDictionary[Sequence, list[Memory]] = WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        found = {id(x): x.nbytes for layers in self.prompts.values() for part in layers for x in part.values()}
        return sum(found.values()) + sum(x.nbytes for memories in self.own.values() for memory in memories for x in memory.own.values())

    def of(self, sequence: Sequence, num_prompt: int) -> list[Memory]:
        """One for each layer."""
        if sequence not in self.own:
            pages = sequence.table[0, 0, : num_prompt // PAGE]
            name = np.concatenate([pages, sequence.pool.births[pages]]).tobytes()
            shared = self.prompts.setdefault(name, [{} for _ in sequence.table])
            self.prompts.move_to_end(name)
            if len(self.prompts) > NUM_REMEMBERED:
                self.prompts.popitem(last=False)
            self.own[sequence] = [Memory(part, {}) for part in shared]
        return self.own[sequence]


class PlannedAttention(Attention):
    """The attention of a process that has a plan."""

    def __init__(self, config: ModelConfig, pool: Pool, planned: AttentionPlan, *, is_native: bool = True, is_shared: bool = True) -> None:
        super().__init__(config, pool, is_native=is_native, is_shared=is_shared)
        self.planned, self.segment = planned, planned.segment
        self.memories, self.met = Memories(), Met()

    @property
    def name(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in vars(self.planned).items())
        return f"{super().name}/attend-{self.planned.name}:{settings}"

    def begin(self, num_found: int, num_prompt: int) -> int:
        behind = max(0, num_found - num_prompt) % self.planned.answer_segment
        return super().begin(num_found, num_prompt) - behind

    def plan(self, spans: Seq[Span]) -> StepPlan:
        if self.planned.is_for_answers and any(span.parents is not None for span in spans):
            raise BadField(
                f"attention plan {self.planned.name} moves the positions of answers, and has no token trees: draft with nothing, or leave it out"
            )
        return PlannedStep(self, spans, self.planned) if any(is_planned for _, is_planned in self.parts(spans)) else super().plan(spans)

    def plain(self, spans: Seq[Span]) -> StepPlan:
        """The step as it is without a plan."""
        return super().plan(spans)

    def parts(self, spans: Seq[Span]) -> Iterable[tuple[Span, bool]]:
        """All spans in order, cut where a prompt ends, and whether the plan is for them."""
        for span in spans:
            if span.parents is not None or span.sequence.is_ragged:
                yield span, False
                continue
            cut = min(max(span.start, span.num_prompt), span.stop)
            if span.start < cut:
                yield replace(span, stop=cut), self.planned.is_for_prompts
            if cut < span.stop:
                yield replace(span, start=cut), self.planned.is_for_answers


@dataclass(frozen=True)
class Part:
    """New tokens lo:hi of a step, of one sequence, that the plan is for."""

    span: Span
    lo: int
    hi: int
    slots: np.ndarray  # [L, N, K]
    places: np.ndarray  # int32 [N]
    memories: Seq[Memory]  # of each layer
    read: tuple[Tensor, Tensor]  # where what its queries have read so far lies: of one layer after the other


@dataclass(frozen=True)
class Meeting:
    """A piece of one sequence in one layer, its queries as they meet it, and what they have read so far: out [N, H, E] and lse [N, H]."""

    piece: Piece
    table: np.ndarray  # [K, capacity]
    start: int
    q_NHE: Tensor
    read: tuple[Tensor, Tensor]

    @property
    def row_places(self) -> np.ndarray:
        """int32: the place of each of the piece's rows."""
        return (self.start + self.piece.rows // self.q_NHE.shape[1]).astype(np.int32)


class PlannedStep(StepPlan):
    """One step: what the plan is for by its pieces, the rest as without a plan."""

    def __init__(self, attention: PlannedAttention, spans: Seq[Span], planned: AttentionPlan) -> None:
        super().__init__(attention, spans)
        self.planned, self.kernel, self.met = planned, attention.kernel, attention.met
        self.parts: list[Part] = []
        rest, rows, at = [], [], 0
        for span, is_planned in attention.parts(spans):
            stop = at + span.stop - span.start
            if is_planned:
                is_answer = span.start >= span.num_prompt
                memories = attention.memories.of(span.sequence, span.num_prompt) if is_answer else [Memory()] * self.config.num_layers
                self.parts.append(self._part(span, at, memories))
            else:
                rest.append(span)
                rows.append(torch.arange(at, stop))
            at = stop
        self.rows = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        self.rest = attention.plain(rest) if rest else None
        self.whole = attention.plain(spans) if self.config.windows else None

    @cached_property
    def frequencies(self) -> dict[str, Tensor]:
        return {kind: frequencies(self.config, kind) for kind in ("global", "local", "none")}

    def _part(self, span: Span, at: int, memories: Seq[Memory]) -> Part:
        num, config = span.stop - span.start, self.config
        read = torch.empty(num, config.num_heads, config.head_dim), torch.empty(num, config.num_heads)
        places = np.arange(span.start, span.stop, dtype=np.int32)
        return Part(span, at, at + num, np.ascontiguousarray(slots_of(span)), places, memories, read)

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        if len(self.parts) != 1 or self.rest is not None or self.whole is not None:
            return self.attend_with_lse(layer, q_THE, k_TKE, v_TKE)[0]
        self._write(layer, self.parts[0], k_TKE, v_TKE)
        return self._read(layer, self.parts[0], q_THE)

    def attend_with_lse(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.whole is not None and self.config.window(layer) is not None:
            return self.whole.attend_with_lse(layer, q_THE, k_TKE, v_TKE)
        out = q_THE.new_empty(len(q_THE), q_THE.shape[1] * q_THE.shape[2])
        lse: Tensor | None = torch.full(q_THE.shape[:2], math.nan)
        for part in self.parts:
            self._write(layer, part, k_TKE[part.lo : part.hi], v_TKE[part.lo : part.hi])
        if self.rest is not None:  # writes too: the parts read what it wrote, and it what they did
            out[self.rows], known = self.rest.attend_with_lse(layer, *(x[self.rows] for x in (q_THE, k_TKE, v_TKE)))
            lse = None if known is None or lse is None else lse.index_copy_(0, self.rows, known)
        for part in self.parts:
            out[part.lo : part.hi] = self._read(layer, part, q_THE[part.lo : part.hi])
        return out, lse

    def _write(self, layer: int, part: Part, k_NKE: Tensor, v_NKE: Tensor) -> None:
        if self.kernel is not None:
            write_rows(self.kernel, part.slots[layer], part.places, (k_NKE, v_NKE))
            return
        width, slots = self.config.head_dim, torch.from_numpy(part.slots[layer]).reshape(-1)
        positions = torch.from_numpy(part.places)[:, None].expand(-1, self.config.num_kv_heads).reshape(-1)
        self.pool.write(slots, k_NKE.reshape(-1, width), v_NKE.reshape(-1, width), positions)

    def _read(self, layer: int, part: Part, q_NHE: Tensor) -> Tensor:
        """What one sequence's queries read, [N, H * E]."""
        span, table = part.span, part.span.sequence.table[layer]

        def keys(first: int, last: int) -> Tensor:
            pages = torch.from_numpy(table[:, first // PAGE : -(-last // PAGE)].astype(np.int64))
            return self.pool.read_keys(pages)[:, first % PAGE : first % PAGE + last - first].transpose(0, 1)

        def weights(place: int) -> Tensor:
            return self._weights(table, place + 1, q_NHE[place - span.start], keys)

        kind = rotary_kind(self.config, layer)

        def forward(rows: Tensor, positions: Tensor) -> Tensor:
            return turned(q_NHE[rows], self.frequencies[kind], positions)

        view = View(
            layer=layer, num_layers=self.config.num_layers, start=span.start, stop=span.stop, num_kv_heads=self.config.num_kv_heads,
            is_rotary=kind != "none", q_NHE=q_NHE, keys=keys, num_prompt=span.num_prompt, turned=forward, memory=part.memories[layer],
            weights=weights,
        )  # fmt: skip
        out, num_met = q_NHE.new_empty(len(q_NHE), q_NHE.shape[1] * q_NHE.shape[2]), 0
        pieces = [piece for piece in self.planned.pieces(view) if len(piece.keys)]
        for i, piece in enumerate(pieces):
            q = q_NHE if piece.turn is None else turned(q_NHE, self.frequencies[kind], piece.turn)
            meeting = Meeting(piece, table, span.start, q, part.read)
            num_met += self._meet(meeting, is_first=i == 0, into=out if i == len(pieces) - 1 else None)
        if span.start >= span.num_prompt:
            self.met.add(num_met, view)
        return out if pieces else out.zero_()

    def _weights(self, table: np.ndarray, num: int, q_HE: Tensor, keys: Callable[[int, int], Tensor]) -> Tensor:
        """float32 [K, num]: what a query gives the first `num` keys."""
        cap = self.config.attn_softcap or 0.0
        if self.kernel is not None:
            return row_weights(self.kernel, table, num, q_HE, softcap=cap)
        q_KGE = q_HE.float().unflatten(0, (self.config.num_kv_heads, -1))
        scores = q_KGE @ keys(0, num).float().permute(1, 2, 0) * q_HE.shape[1] ** -0.5
        return (cap * torch.tanh(scores / cap) if cap else scores).softmax(-1).sum(1)

    def _meet(self, meeting: Meeting, *, is_first: bool, into: Tensor | None) -> int:
        """How many pairs of a row and a key met. into: where what all rows have read goes, [N, H * E]."""
        if self.kernel is None:
            return self._meet_slowly(meeting, is_first=is_first, into=into)
        piece = meeting.piece
        lists = Lists(
            heads=piece.heads, rows=piece.rows, row_ends=piece.row_ends, keys=piece.keys, key_ends=piece.key_ends, are_pages=piece.are_pages,
            table=meeting.table, start=meeting.start, log_weight=piece.log_weight,
        )  # fmt: skip
        reading = Reading(q_THE=meeting.q_NHE, out=meeting.read[0], lse=meeting.read[1], softcap=self.config.attn_softcap or 0.0)
        return run_lists(self.kernel, lists, reading, is_first=is_first, into=into)

    def _meet_slowly(self, meeting: Meeting, *, is_first: bool, into: Tensor | None) -> int:
        piece, num_keys, num_met = meeting.piece, meeting.start + len(meeting.q_NHE), 0
        if is_first:
            meeting.read[0].zero_()
            meeting.read[1].fill_(-math.inf)
        q, out, lse = meeting.q_NHE.flatten(0, 1), meeting.read[0].flatten(0, 1), meeting.read[1].flatten()  # views of what is read
        row_starts, key_starts = (np.concatenate([[0], ends]) for ends in (piece.row_ends, piece.key_ends))
        row_places = torch.from_numpy(meeting.row_places)
        for i, head in enumerate(piece.heads):
            mine = slice(row_starts[i], row_starts[i + 1])
            rows = torch.from_numpy(piece.rows[mine].astype(np.int64))
            places = torch.from_numpy(piece.keys[key_starts[i] : key_starts[i + 1]].astype(np.int64))
            if piece.are_pages:
                places = (places[:, None] * PAGE + torch.arange(PAGE)).flatten()
                places = places[places < num_keys]
            slots = torch.from_numpy(meeting.table[head].astype(np.int64))[places // PAGE] * PAGE + places % PAGE
            if not len(places):
                continue
            mask = torch.where(places <= row_places[mine, None], 0.0, -math.inf)
            num_met += int((mask == 0).sum())
            some, total = attention_reference(q[rows], self.pool.rows(0, slots), self.pool.rows(1, slots), mask, softcap=self.config.attn_softcap)
            out[rows], lse[rows] = merge([(out[rows], lse[rows]), (some.float(), total + piece.log_weight)])
        if into is not None:
            into.copy_(meeting.read[0].flatten(1))
        return num_met
