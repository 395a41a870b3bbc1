"""Which keys every new token of a step meets, and what it reads from them.

The law of this file: what a token reads depends, bit for bit, on the tokens before it and on nothing else; not on what runs
beside it, how its prompt was cut into chunks, what was cached, or who shares its prefix. The compiled kernel
(native/attention.cpp) keeps it by the order of its sums. The kernel of PyTorch gives equal rows for equal call shapes only,
whatever the batch, so there a call's shape is a function of the token's place alone:

    completion token   one token's G query rows per key head, against padded_len(index + 1) keys
    prompt token       the BLOCK tokens of its aligned block, BLOCK * G query rows, against padded_len(end of block) keys

Grouped heads are never expanded. A tree's tokens (speculation) see the keys before their span and their own ancestors.

Shapes: T flat tokens, B batch of a call, H query heads, K key heads, G = H / K, E head width, C padded keys, M query rows.
"""

import abc
import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine.pages import PAGE, Pool, Sequence
from ponder.native.attention import BLOCK as NATIVE_BLOCK
from ponder.native.attention import Kernel, Tokens, open_kernel

BLOCK = 16  # prompt tokens whose query rows are computed together (PyTorch)
NUM_TAIL_BITS = 64


@dataclass(frozen=True)
class Stretch:
    """Keys that a token meets: places start..stop of a sequence, its query turned forward by so many positions."""

    sequence: Sequence
    start: int
    stop: int
    turn: int


@dataclass(frozen=True)
class Span:
    """New tokens of a sequence in a step: places start..stop among its keys. Those before num_prompt are prompt tokens.

    parents: for a token tree, each token's parent in the span (-1: the token before it); positions count the ancestors.
    copies: (sequence of another span of the step, start, stop): the tokens at these places are written there too, at the same places, so
    that it reads them bit for bit as if they were its own.
    at: positions of the tokens, where they are not their places. asked: nobody asks what the model says at places before this one.
    met: for each token what it meets instead of all before it, itself last (engine.beside).
    """

    sequence: Sequence
    start: int
    stop: int
    num_prompt: int
    parents: tuple[int, ...] | None = None
    copies: tuple[tuple[Sequence, int, int], ...] = ()
    at: tuple[int, ...] | None = None
    asked: int = 0
    met: tuple[tuple[Stretch, ...], ...] = ()

    @property
    def positions(self) -> np.ndarray:
        if self.at is not None:
            return np.array(self.at)
        if self.parents is None:
            return np.arange(self.start, self.stop)
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return self.start + np.array(depth)

    @property
    def is_single(self) -> bool:
        return self.stop - self.start == 1 and self.start >= self.num_prompt and self.parents is None

    def singles(self) -> "list[Span]":
        """Its tokens one by one: each sees those before it all the same, once all are written."""
        return [self] if self.is_single else [Span(self.sequence, at, at + 1, self.num_prompt) for at in range(self.start, self.stop)]

    def sees(self) -> np.ndarray:
        """bool [n, n]: which of a tree's tokens each of them sees (ancestors and itself)."""
        assert self.parents is not None
        seen = np.eye(len(self.parents), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] |= seen[parent]
        return seen


class Attention:
    """The attention of a process: its pages, and the kernel that reads them."""

    segment = 1  # prompts are cut only at multiples of it

    def __init__(self, config: ModelConfig, pool: Pool, *, is_native: bool = True, is_shared: bool = True) -> None:
        """is_native False: PyTorch even where the compiled kernel can; is_shared False: nobody meets a prefix together."""
        self.config, self.pool, self.is_shared = config, pool, is_shared
        self.kernel: Kernel | None = None
        if is_native and pool.dtype == torch.bfloat16 and config.num_heads // config.num_kv_heads <= NATIVE_BLOCK:
            self.kernel = open_kernel(pool.keys, pool.values, pool.positions, pool.scales)
        self.known: tuple[tuple[int, ...], list[tuple[int, int, int, int, int, int]]] = ((), [])

    @property
    def name(self) -> str:
        """What a model's id says of the kernel that reads."""
        return "/torch" if self.kernel is None else ""

    def begin(self, num_found: int, num_prompt: int) -> int:
        """How many of the tokens that are computed already need not be computed again."""
        return num_found if num_found >= num_prompt else num_found - num_found % self.segment

    def stop(self, stop: int, num_prompt: int) -> int:
        """Where a span that could end at `stop` ends: a prompt is cut only between segments."""
        return stop if stop >= num_prompt else min(num_prompt, -(-stop // self.segment) * self.segment)

    def plan(self, spans: Seq[Span]) -> "StepPlan":
        """The step's plan; spans must be in the order of `in_order`."""
        return NativePlan(self, spans, self.kernel) if self.kernel is not None else TorchPlan(self, spans)

    def groups(self, spans: Seq[Span]) -> list[tuple[int, int, int, int, int, int]]:
        """(first token, last token, sequence, first block, last block or -1, level) of what is met together, in blocks of NATIVE_BLOCK keys;
        remembered."""
        name = tuple(x for span in spans for x in (span.sequence.number, span.stop - span.start))
        if name != self.known[0]:
            self.known = name, list(shared_runs(spans, self.is_shared))
        return self.known[1]


class StepPlan(abc.ABC):
    """The attention of one step; its `attend` is what Decoder.forward calls. Flat tokens are in the order of the spans."""

    def __init__(self, attention: Attention, spans: Seq[Span]) -> None:
        self.config, self.pool, self.spans = attention.config, attention.pool, spans
        self.places = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        has_trees = any(span.parents is not None for span in spans)
        are_moved = has_trees or any(span.at is not None for span in spans)
        self.positions = torch.from_numpy(np.concatenate([span.positions for span in spans]) if are_moved else self.places)
        self.has_trees = has_trees

    @cached_property
    def copies(self) -> np.ndarray:
        """int64 [N, 3]: flat tokens, numbers of spans in whose sequences they are written too, and places there."""
        number = {span.sequence: i for i, span in enumerate(self.spans)}
        rows, lo = [], 0
        for span in self.spans:
            for sequence, start, stop in span.copies:
                rows += [(lo + place - span.start, number[sequence], place) for place in range(start, stop)]
            lo += span.stop - span.start
        return np.array(rows, np.int64).reshape(-1, 3)

    def copy_slots(self) -> np.ndarray:
        """int64 [L, N, K]: flat slots of the copies."""
        return np.concatenate([slots_at(self.spans[i].sequence, place, place + 1) for _, i, place in self.copies.tolist()], 1)

    @property
    def prompts(self) -> list[tuple[int, int]]:
        """(start, stop) of flat tokens that are of prompts."""
        starts = np.cumsum([0, *(span.stop - span.start for span in self.spans)]).tolist()
        nums = [min(span.stop, span.num_prompt) - span.start for span in self.spans]
        return [(start, start + num) for start, num in zip(starts, nums) if num > 0]

    @abc.abstractmethod
    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """Writes k and v into their pages and returns what every token reads, [T, H * E]."""

    def attend_with_lse(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor | None]:
        """attend, and the log of the sum of exponentiated scores, float32 [T, H]: NaN for rows that did not meet all keys, None where the
        kernel does not tell."""
        return self.attend(layer, q_THE, k_TKE, v_TKE), None


class NativePlan(StepPlan):
    """By the compiled kernel: prefixes are read where they lie, shared ones once for all who share them."""

    def __init__(self, attention: Attention, spans: Seq[Span], kernel: Kernel) -> None:
        super().__init__(attention, spans)
        num = [span.stop - span.start for span in spans]
        sequences = np.repeat(np.arange(len(spans), dtype=np.int32), num)
        limits, tail = self.places + 1, None
        if self.has_trees:
            limits, tail = self._tails()
        config = self.config
        self.plan = kernel.plan(
            Tokens(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                sequences=sequences,
                places=self.places,
                limits=limits,
                positions=self.positions.numpy(),
                tail=tail,
                tables=[span.sequence.table for span in spans],
                dropped=[span.sequence.dropped for span in spans] if any(span.sequence.is_ragged for span in spans) else None,
                groups=attention.groups(spans),
                copies=self.copies if any(span.copies for span in spans) else None,
            )
        )

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        return self.plan.run(layer, q_THE, k_TKE, v_TKE, window=self.config.window(layer) or 0, softcap=self.config.attn_softcap or 0.0)

    def attend_with_lse(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        lse = torch.empty(q_THE.shape[:2], dtype=torch.float32)
        cap = self.config.attn_softcap or 0.0
        return self.plan.run(layer, q_THE, k_TKE, v_TKE, window=self.config.window(layer) or 0, softcap=cap, lse_TH=lse), lse

    def _tails(self) -> tuple[np.ndarray, np.ndarray]:
        longest = max(span.stop - span.start for span in self.spans if span.parents is not None)
        num_words = -(-longest // NUM_TAIL_BITS)
        tail = np.zeros((len(self.places), num_words * NUM_TAIL_BITS), np.uint8)
        limits, lo = self.places + 1, 0
        for span in self.spans:
            hi = lo + span.stop - span.start
            if span.parents is not None:
                limits[lo:hi] = span.start
                tail[lo:hi, : hi - lo] = span.sees()
            lo = hi
        return limits, np.packbits(tail, axis=1, bitorder="little").view(np.uint64)


@dataclass(frozen=True)
class Call:
    """One call of PyTorch's kernel: tokens lo:hi as B batch entries of M / G rows each, against pages [L, B, K, C / PAGE].

    B is 1 in `pages` when all entries are of one sequence. `before`: rows of the first block that belong to no token.
    """

    lo: int
    hi: int
    pages: Tensor
    limits: np.ndarray  # [B, rows each]: keys a row sees ...
    tails: np.ndarray | None  # bool [B, C]: ... or exactly which
    dropped: np.ndarray  # [L, B, K]
    before: int = 0

    @property
    def rows_each(self) -> int:
        return int(self.limits.shape[1])


class TorchPlan(StepPlan):
    """By PyTorch: a call's keys are gathered from their pages first."""

    def __init__(self, attention: Attention, spans: Seq[Span]) -> None:
        super().__init__(attention, spans)
        slots, self.written = [slots_of(span) for span in spans], None  # written: the flat token of each slot, where there are copies
        if len(self.copies):
            slots.append(self.copy_slots())
            self.written = torch.from_numpy(np.concatenate([np.arange(len(self.places)), self.copies[:, 0]]))
        self.slots = torch.from_numpy(np.concatenate(slots, 1))  # [L, T, K]
        self.calls = list(_calls(spans))

    @cached_property
    def is_masked_by_layer(self) -> bool:
        return any(span.sequence.is_ragged for span in self.spans)

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        width, num_heads = self.config.head_dim, self.config.num_kv_heads
        positions = self.positions if self.written is None else self.positions[self.written]
        positions = positions[:, None].expand(-1, num_heads).reshape(-1)
        if self.written is not None:
            k_TKE, v_TKE = k_TKE[self.written], v_TKE[self.written]
        self.pool.write(self.slots[layer].reshape(-1), k_TKE.reshape(-1, width), v_TKE.reshape(-1, width), positions)
        outs = [self._run(call, layer, q_THE) for call in self.calls]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _run(self, call: Call, layer: int, q_THE: Tensor) -> Tensor:
        config, num = self.config, len(call.limits)
        keys, values = self.pool.read(call.pages[layer])
        keys, values = (x.expand(num, -1, -1, -1) for x in (keys, values))
        q_THE, size = q_THE[call.lo : call.hi], num * call.rows_each
        if size != len(q_THE):
            padded = q_THE.new_zeros(size, *q_THE.shape[1:])
            padded[call.before : call.before + len(q_THE)] = q_THE
            q_THE = padded
        q_BKME = q_THE.reshape(num, call.rows_each, config.num_kv_heads, -1, config.head_dim).transpose(1, 2).flatten(2, 3)
        mask = self._mask(call, layer, q_BKME.shape[2] // call.rows_each)
        if config.attn_softcap is not None:
            out_BKME = attention_reference(q_BKME, keys, values, mask, softcap=config.attn_softcap)[0]
        else:
            out_BKME = attend_group(q_BKME, keys, values, mask)
        out_TX = out_BKME.unflatten(2, (call.rows_each, -1)).transpose(1, 2).reshape(size, -1)
        return out_TX[call.before : call.before + call.hi - call.lo]

    def _mask(self, call: Call, layer: int, group: int) -> Tensor:
        """float32 [B, 1 or K, M, C]: 0 where a row sees a key, -inf where not."""
        window = self.config.window(layer)
        name = (id(call), layer if self.is_masked_by_layer or window is not None else -1)
        masks: dict[tuple[int, int], Tensor] = self.__dict__.setdefault("_masks", {})
        if name not in masks:
            masks[name] = self._made_mask(call, layer, window, group)
        return masks[name]

    def _made_mask(self, call: Call, layer: int, window: int | None, group: int) -> Tensor:
        length = call.pages.shape[-1] * PAGE
        limits = torch.from_numpy(call.limits)[:, None, :, None] - torch.from_numpy(call.dropped[layer])[:, :, None, None]
        seen = torch.arange(length) < limits  # [B, K, rows each, C]
        if not self.is_masked_by_layer:
            seen = seen[:, :1]
        if call.tails is not None:
            seen = seen | torch.from_numpy(call.tails)[:, None, None]
        if window is not None:
            at = self.pool.positions[call.pages[layer].reshape(-1)].view(call.pages.shape[1], -1, 1, length)
            own = self.positions[call.lo : call.hi] if not call.before and len(call.limits) * call.rows_each == call.hi - call.lo else None
            if own is None:
                own = torch.from_numpy(call.limits.reshape(-1)) - 1
            seen = seen & (at > own.view(len(call.limits), 1, -1, 1) - window)
        return torch.where(seen, 0.0, -math.inf).repeat_interleave(group, 2)


def attention(q_BKME: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(out [B, K, M, E], lse [B, K, M] float32) of softmax(q k / sqrt(E) + mask) v."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q_BKME, k_BKCE, v_BKCE, attn_mask=mask)


def attend_group(q_BKME: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor) -> Tensor:
    """What rows read, [B, K, M, E]. 3 rows are padded to 4: with 3 query rows, and only then, the kernel's sums differ in the
    last bit between the first and later calls of a thread (torch 2.13), and 4 are faster."""
    if q_BKME.shape[2] != 3:
        return attention(q_BKME, k_BKCE, v_BKCE, mask)[0]
    return attention(F.pad(q_BKME, (0, 0, 0, 1)), k_BKCE, v_BKCE, F.pad(mask, (0, 0, 0, 1)))[0][:, :, :3]


def attention_reference(q_BKME: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor, *, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """The same in plain float32: slow, obvious, the oracle of the tests. A row that sees nothing reads zeros, with lse -inf."""
    scores = q_BKME.float() @ k_BKCE.float().transpose(-1, -2) / math.sqrt(q_BKME.shape[-1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    return (scores.softmax(-1).nan_to_num(0.0) @ v_BKCE.float()).to(q_BKME.dtype), scores.logsumexp(-1)


def merge(pieces: Seq[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(out [..., E], lse [...]) over disjoint sets of keys, from each set's: out = sum w out / sum w with w = exp(lse - max).

    Exact. The largest lse is subtracted first; a set of which a row sees nothing has lse -inf and no weight.
    """
    outs, lses = torch.stack([out.float() for out, _ in pieces]), torch.stack([lse for _, lse in pieces])
    lse = lses.logsumexp(0)
    weight = torch.where(lses.isneginf(), 0.0, (lses - lse).exp())
    return (outs * weight[..., None]).sum(0).to(pieces[0][0].dtype), lse


def padded_len(num_tokens: int) -> int:
    """Padded key length for `num_tokens`: 64, 128, 192, 256, 384, 512, then steps of half a power of two."""
    length = 64
    while length < num_tokens:
        length += 64 if length < 256 else 1 << (length.bit_length() - 2)
    return length


def in_order(spans: Iterable[Span]) -> list[Span]:
    """Spans in the order a plan wants: those of equal shape and those that share a prefix side by side."""
    return sorted(spans, key=lambda s: (not s.is_single, s.sequence.table[0, 0, : s.sequence.num_pages[0, 0]].astype(">u4").tobytes()))


def shared_runs(spans: Seq[Span], is_shared: bool) -> Iterable[tuple[int, int, int, int, int, int]]:
    """Cuts every sequence's blocks into runs, each met at once by all that share its pages: a tree of prefixes."""
    starts = np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])]).tolist()
    rows = [span.sequence.table[0, 0, : -(-span.start // PAGE)] for span in spans]
    common = [_common_blocks(spans[i], spans[i + 1], rows[i], rows[i + 1]) if is_shared else 0 for i in range(len(spans) - 1)]
    todo = [(0, len(spans), 0, 0)]
    while todo:
        first, last, block, level = todo.pop()
        if last - first == 1:
            yield starts[first], starts[last], first, block, -1, level
            continue
        shared = min(common[first : last - 1])
        if shared > block:
            yield starts[first], starts[last], first, block, shared, level
            block, level = shared, level + 1
        cut = first
        for i in range(first, last - 1):
            if common[i] <= block:
                todo.append((cut, i + 1, block, level))
                cut = i + 1
        todo.append((cut, last, block, level))


def _common_blocks(a: Span, b: Span, pages_a: np.ndarray, pages_b: np.ndarray) -> int:
    if a.sequence.is_ragged or b.sequence.is_ragged:
        return 0
    num = min(len(pages_a), len(pages_b))
    differ = np.flatnonzero(pages_a[:num] != pages_b[:num])
    same = int(differ[0]) if len(differ) else num
    return min(same * PAGE, a.start, b.start) // NATIVE_BLOCK


def slots_of(span: Span) -> np.ndarray:
    """int64 [L, n, K]: flat slots of a span's tokens."""
    return slots_at(span.sequence, span.start, span.stop)


def slots_at(sequence: Sequence, start: int, stop: int) -> np.ndarray:
    """int64 [L, n, K]: flat slots of a sequence's places."""
    at = np.arange(start, stop) - sequence.dropped[..., None]
    pages = np.take_along_axis(sequence.table, at // PAGE, 2).astype(np.int64)
    return (pages * PAGE + at % PAGE).transpose(0, 2, 1)


def _calls(spans: Seq[Span]) -> Iterable[Call]:
    """Kernel calls that cover all flat tokens in order."""
    lo = 0
    singles: list[Span] = []
    for span in spans:
        if singles and not (span.is_single and padded_len(singles[-1].stop) == padded_len(span.stop)):
            yield _call(singles, lo, lo + len(singles), padded_len(singles[0].stop), limits=np.array([[s.stop] for s in singles]))
            lo, singles = lo + len(singles), []
        if span.is_single:
            singles.append(span)
            continue
        yield from _span_calls(span, lo)
        lo += span.stop - span.start
    if singles:
        yield _call(singles, lo, lo + len(singles), padded_len(singles[0].stop), limits=np.array([[s.stop] for s in singles]))


def _span_calls(span: Span, lo: int) -> Iterable[Call]:
    """Calls of one long span: prompt blocks by padded length, then completion tokens by padded length; a tree's tokens at once."""
    if span.parents is not None:
        length, num = padded_len(span.stop), span.stop - span.start
        tails = np.zeros((num, length), bool)
        tails[:, span.start : span.stop] = span.sees()
        yield _call([span], lo, lo + num, length, limits=np.full((num, 1), span.start), tails=tails)
        return
    for start, stop, length in _pieces(span.start, min(span.stop, span.num_prompt), BLOCK):
        whole = np.arange(start // BLOCK * BLOCK, -(-stop // BLOCK) * BLOCK)
        yield _call([span], lo, lo + stop - start, length, limits=whole.reshape(-1, BLOCK) + 1, before=start % BLOCK)
        lo += stop - start
    for start, stop, length in _pieces(max(span.start, span.num_prompt), span.stop, 1):
        yield _call([span], lo, lo + stop - start, length, limits=np.arange(start, stop)[:, None] + 1)
        lo += stop - start


def _call(spans: Seq[Span], lo: int, hi: int, length: int, *, limits: np.ndarray, tails: np.ndarray | None = None, before: int = 0) -> Call:
    pages = []
    for span in spans:
        row = span.sequence.table[:, :, : length // PAGE]
        pages.append(np.pad(row, ((0, 0), (0, 0), (0, length // PAGE - row.shape[2]))))
    dropped = np.stack([span.sequence.dropped for span in spans], 1)
    return Call(lo, hi, torch.from_numpy(np.stack(pages, 1).astype(np.int64)), limits, tails, dropped, before)


def _pieces(start: int, stop: int, block: int) -> Iterable[tuple[int, int, int]]:
    """Cuts places start..stop where the padded length of their block changes."""
    while start < stop:
        length = padded_len((start // block + 1) * block)
        end = min(stop, length)
        yield start, end, length
        start = end
