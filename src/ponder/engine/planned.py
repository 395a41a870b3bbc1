"""Attention by a plan (core.attention_plan): each new query meets the lists of keys that the plan gives it, and nothing else.

Keys and values are written first, then the plan is asked layer by layer for each sequence, and its pieces are met by the compiled
kernel (native/lists.cpp), or by PyTorch in float32, list by list: slow, obvious, the oracle. Layers with a window of their own, token
trees and sequences whose heads dropped keys are met as without a plan; so are completion tokens, unless the plan is for them too.

The law is that of engine.attend: what a token reads is a function of the tokens before it. The compiled kernel keeps it bit for bit.

Shapes: T flat tokens, N new tokens of a sequence, H query heads, K key heads, E head width.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
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
from ponder.native.attention import Kernel
from ponder.native.lists import Lists, pool_of, run_lists, write_rows

assert PAGE == KEY_BLOCK
NUM_REMEMBERED = 32  # prompts of which a plan's memory is kept after their last sequence


@dataclass
class Met:
    """What answers' tokens met, by a plan, of the keys that were there: counted by (row, key)."""

    keys: int = 0
    of: int = 0

    def add(self, pieces: Seq[Piece], view: View) -> None:
        for piece in pieces:
            if not len(piece.heads):
                continue
            num_rows, keys = (np.diff(ends, prepend=0).astype(np.int64) for ends in (piece.row_ends, piece.key_ends))
            self.keys += int((num_rows * keys).sum()) * (KEY_BLOCK if piece.are_pages else 1)
            if piece.are_pages:  # of the last page a row sees what is not behind it
                last = np.repeat(piece.keys[piece.key_ends - 1] * KEY_BLOCK + KEY_BLOCK - 1, num_rows)
                self.keys -= int((last - view.start - piece.rows // view.num_heads).clip(0).sum())
        self.of += sum(range(view.start + 1, view.stop + 1)) * view.num_heads

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
    memories: Seq[Memory]  # of each layer


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
                self.parts.append(Part(span, at, stop, slots_of(span), memories))
            else:
                rest.append(span)
                rows.append(torch.arange(at, stop))
            at = stop
        self.rows = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        self.rest = attention.plain(rest) if rest else None
        self.whole = attention.plain(spans) if self.config.windows else None
        self.frequencies = {kind: frequencies(self.config, kind) for kind in ("global", "local", "none")}

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        return self.attend_with_lse(layer, q_THE, k_TKE, v_TKE)[0]

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
        places = np.arange(part.span.start, part.span.stop, dtype=np.int32)
        if self.kernel is not None:
            write_rows(self.kernel, np.ascontiguousarray(part.slots[layer]), places, (k_NKE, v_NKE))
            return
        width, slots = self.config.head_dim, torch.from_numpy(part.slots[layer]).reshape(-1)
        positions = torch.from_numpy(places)[:, None].expand(-1, self.config.num_kv_heads).reshape(-1)
        self.pool.write(slots, k_NKE.reshape(-1, width), v_NKE.reshape(-1, width), positions)

    def _read(self, layer: int, part: Part, q_NHE: Tensor) -> Tensor:
        """What one sequence's queries read, [N, H * E]."""
        span, table = part.span, part.span.sequence.table[layer]

        def keys(first: int, last: int) -> Tensor:
            pages = torch.from_numpy(table[:, first // PAGE : -(-last // PAGE)].astype(np.int64))
            return self.pool.read_keys(pages)[:, first % PAGE : first % PAGE + last - first].transpose(0, 1)

        kind = rotary_kind(self.config, layer)

        def forward(rows: Tensor, positions: Tensor) -> Tensor:
            return turned(q_NHE[rows], self.frequencies[kind], positions)

        view = View(
            layer=layer, num_layers=self.config.num_layers, start=span.start, stop=span.stop, num_kv_heads=self.config.num_kv_heads,
            is_rotary=kind != "none", q_NHE=q_NHE, keys=keys, num_prompt=span.num_prompt, turned=forward,
            memory=part.memories[layer],
        )  # fmt: skip
        read = torch.zeros(q_NHE.shape, dtype=torch.float32), torch.full(q_NHE.shape[:2], -math.inf)
        pieces = self.planned.pieces(view)
        if span.start >= span.num_prompt:
            self.met.add(pieces, view)
        for piece in pieces:
            q = q_NHE if piece.turn is None else turned(q_NHE, self.frequencies[kind], piece.turn)
            if len(piece.heads):
                self._meet(Meeting(piece, table, span.start, q, read))
        return read[0].to(q_NHE.dtype).flatten(1)

    def _meet(self, meeting: Meeting) -> None:
        if self.kernel is None:
            self._meet_slowly(meeting)
        elif meeting.piece.are_pages:
            piece, cap = meeting.piece, self.config.attn_softcap or 0.0
            nums = np.diff(piece.key_ends, prepend=0)
            lists = Lists(
                rows=piece.rows, limits=meeting.row_places + 1, row_ends=piece.row_ends, page_ends=piece.key_ends, log_weight=piece.log_weight,
                pages=meeting.table[np.repeat(piece.heads, nums), piece.keys], places=piece.keys * PAGE,
            )  # fmt: skip
            run_lists(self.kernel, lists, meeting.q_NHE, meeting.read, softcap=cap)
        else:
            self._meet_copies(self.kernel, meeting)

    def _meet_copies(self, kernel: Kernel, meeting: Meeting) -> None:
        """Single keys, copied side by side first."""
        piece = meeting.piece
        nums = np.diff(piece.key_ends, prepend=0)
        num_pages = -(-nums // PAGE)
        ends = np.cumsum(num_pages)
        pages = np.arange(ends[-1])
        lists = Lists(
            rows=piece.rows, limits=np.repeat(nums, np.diff(piece.row_ends, prepend=0)), row_ends=piece.row_ends, pages=pages,
            places=(pages - np.repeat(ends - num_pages, num_pages)) * PAGE, page_ends=ends, log_weight=piece.log_weight,
        )  # fmt: skip
        at = torch.from_numpy(np.arange(len(piece.keys)) + np.repeat((ends - num_pages) * PAGE - piece.key_ends + nums, nums))
        heads = np.repeat(piece.heads, nums)
        slots = torch.from_numpy(meeting.table[heads, piece.keys // PAGE].astype(np.int64) * PAGE + piece.keys % PAGE)
        keys, values = (torch.zeros(len(pages) * PAGE, self.config.head_dim, dtype=self.pool.dtype) for _ in range(2))
        for which, side in enumerate((keys, values)):
            side[at] = self.pool.rows(which, slots)
        cap = self.config.attn_softcap or 0.0
        run_lists(kernel, lists, meeting.q_NHE, meeting.read, softcap=cap, pool=pool_of(keys, values))

    def _meet_slowly(self, meeting: Meeting) -> None:
        piece, num_keys = meeting.piece, meeting.start + len(meeting.q_NHE)
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
            mask = torch.where(places <= row_places[mine, None], 0.0, -math.inf)
            some, total = attention_reference(q[rows], self.pool.rows(0, slots), self.pool.rows(1, slots), mask, softcap=self.config.attn_softcap)
            out[rows], lse[rows] = merge([(out[rows], lse[rows]), (some.float(), total + piece.log_weight)])
