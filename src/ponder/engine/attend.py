"""Which keys every new token of a step meets, and the kernel calls that compute it.

The law of this file: what a token reads depends, bit for bit, on the tokens before it and on nothing else; not on what runs
beside it, how its prompt was cut into chunks, or what was cached. The CPU kernel gives equal rows for equal call shapes,
whatever the batch size; it does not give equal rows for other numbers of query rows or another padded length. So a call's
shape is a function of the token's position alone:

    completion token   one token's G query rows per key head, against padded_len(position + 1) keys
    prompt token       the BLOCK tokens of its aligned block, BLOCK * G query rows, against padded_len(end of block) keys

Calls of equal shape are stacked along the batch dimension, which changes no bit. Grouped heads are never expanded.

Shapes: T flat tokens, B batch of a call, H query heads, K key heads, G = H / K, E head width, C padded keys, M query rows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.engine.rows import Bank, Row, padded_len

BLOCK = 16  # prompt tokens whose query rows are computed together


@dataclass(frozen=True)
class Span:
    """New tokens of one row in a step: positions start..stop. Those before num_prompt are prompt tokens."""

    row: Row
    start: int
    stop: int
    num_prompt: int


@dataclass(frozen=True)
class Call:
    """One kernel call: flat tokens lo:hi against rows of a bank.

    Rows first:last, one per token, or with `is_shared` row `first` for all of them. block_start is None for completion
    tokens; for prompt tokens it is the position of the first, whose block may begin before it.
    """

    bank: Bank
    lo: int
    hi: int
    first: int
    last: int
    length: int
    is_shared: bool
    mask: Tensor  # float32 [B, 1, M or 1, C]
    block_start: int | None = None


def attention(q_BKME: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(out [B, K, M, E], lse [B, K, M] float32) of softmax(q k / sqrt(E) + mask) v."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q_BKME, k_BKCE, v_BKCE, attn_mask=mask)


def attend_group(q_BKGE: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor) -> Tensor:
    """What one token's query group reads, [B, K, G, E]. A group of 3 is padded to 4: with 3 query rows, and only then, the
    kernel's sums differ in the last bit between the first and later calls of a thread (torch 2.13), and 4 are faster."""
    if q_BKGE.shape[2] != 3:
        return attention(q_BKGE, k_BKCE, v_BKCE, mask)[0]
    return attention(F.pad(q_BKGE, (0, 0, 0, 1)), k_BKCE, v_BKCE, mask)[0][:, :, :3]


def attention_reference(q_BKME: Tensor, k_BKCE: Tensor, v_BKCE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain float32: slow, obvious, the oracle of the tests."""
    scores = q_BKME.float() @ k_BKCE.float().transpose(-1, -2) / math.sqrt(q_BKME.shape[-1]) + mask
    return (scores.softmax(-1) @ v_BKCE.float()).to(q_BKME.dtype), scores.logsumexp(-1)


def causal_mask(positions: Tensor, length: int) -> Tensor:
    """float32 [len(positions), length]: 0 up to and including the position, -inf after it."""
    return torch.where(torch.arange(length) <= positions[:, None], 0.0, -math.inf)


class StepPlan:
    """The attention of one step; its `attend` is what Decoder.forward calls.

    Flat tokens are in the order of `spans`: sorted by bank, single tokens before longer spans, by row (`in_order`).
    """

    def __init__(self, config: ModelConfig, spans: Sequence[Span]) -> None:
        self.config = config
        self.positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        self.writes = list(_writes(spans))
        self.calls = list(_calls(config, spans))

    def attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """Writes k and v into their rows and returns what every token reads, [T, H * E]."""
        for bank, lo, hi, places in self.writes:
            bank.flat_keys[layer].index_copy_(0, places, k_TKE[lo:hi])
            bank.flat_values[layer].index_copy_(0, places, v_TKE[lo:hi])
        outs = [self._run(call, layer, q_THE) for call in self.calls]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _run(self, call: Call, layer: int, q_THE: Tensor) -> Tensor:
        keys, values = (layers[layer] for layers in call.bank.view(call.first, call.last, call.length))
        if call.is_shared:
            keys, values = (x.expand(len(call.mask), -1, -1, -1) for x in (keys, values))
        q_THE = q_THE[call.lo : call.hi]
        if call.block_start is not None:
            return self._run_blocks(call, q_THE, keys, values)
        q_BKGE = q_THE.view(len(q_THE), self.config.num_kv_heads, -1, self.config.head_dim)
        return attend_group(q_BKGE, keys, values, call.mask).reshape(len(q_THE), -1)

    def _run_blocks(self, call: Call, q_THE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Prompt tokens: pads to whole blocks, folds a block's tokens and its query group into rows, and undoes both."""
        assert call.block_start is not None
        config, num_blocks = self.config, len(call.mask)
        before = call.block_start % BLOCK
        if before or len(q_THE) % BLOCK:
            padded = q_THE.new_zeros(num_blocks * BLOCK, *q_THE.shape[1:])
            padded[before : before + len(q_THE)] = q_THE
            q_THE = padded
        q_BKME = q_THE.reshape(num_blocks, BLOCK, config.num_kv_heads, -1, config.head_dim).transpose(1, 2).flatten(2, 3)
        out_BKME = attention(q_BKME, keys, values, call.mask)[0]
        out_TX = out_BKME.unflatten(2, (BLOCK, -1)).transpose(1, 2).reshape(num_blocks * BLOCK, -1)
        return out_TX[before : before + call.hi - call.lo]


def in_order(spans: Iterable[Span]) -> list[Span]:
    """Spans in the order a StepPlan wants: by bank, single completion tokens first, by row."""
    return sorted(spans, key=lambda s: (s.row.bank.length, s.row.bank.number, not _is_single(s), s.row.index))


def _is_single(span: Span) -> bool:
    return span.stop - span.start == 1 and span.start >= span.num_prompt


def _writes(spans: Sequence[Span]) -> Iterable[tuple[Bank, int, int, Tensor]]:
    """(bank, lo, hi, row * C + position of each token): one write per bank."""
    lo = 0
    for _, group in groupby(spans, key=lambda s: (s.row.bank.length, s.row.bank.number)):
        of_bank = list(group)
        places = torch.cat([torch.arange(s.start, s.stop) + s.row.index * s.row.bank.length for s in of_bank])
        yield of_bank[0].row.bank, lo, lo + len(places), places
        lo += len(places)


def _calls(config: ModelConfig, spans: Sequence[Span]) -> Iterable[Call]:
    """Kernel calls that cover all flat tokens in order."""
    lo, group_size = 0, config.num_heads // config.num_kv_heads
    singles: list[Span] = []
    for span in spans:
        if _is_single(span):
            if singles and not _is_neighbour(singles[-1], span):
                yield _single_call(singles, lo)
                lo, singles = lo + len(singles), []
            singles.append(span)
            continue
        if singles:
            yield _single_call(singles, lo)
            lo, singles = lo + len(singles), []
        yield from _span_calls(span, lo, group_size)
        lo += span.stop - span.start
    if singles:
        yield _single_call(singles, lo)


def _is_neighbour(a: Span, b: Span) -> bool:
    return a.row.bank is b.row.bank and b.row.index == a.row.index + 1 and padded_len(a.stop) == padded_len(b.stop)


def _single_call(singles: Sequence[Span], lo: int) -> Call:
    length, first = padded_len(singles[0].stop), singles[0].row.index
    mask = causal_mask(torch.tensor([s.start for s in singles]), length)[:, None, None]
    return Call(singles[0].row.bank, lo, lo + len(singles), first, first + len(singles), length, False, mask)


def _span_calls(span: Span, lo: int, group_size: int) -> Iterable[Call]:
    """Calls of one long span: prompt blocks by padded length, then completion tokens by padded length."""
    index = span.row.index
    for start, stop, length in _pieces(span.start, min(span.stop, span.num_prompt), BLOCK):
        whole = torch.arange(start // BLOCK * BLOCK, -(-stop // BLOCK) * BLOCK)
        mask = causal_mask(whole.repeat_interleave(group_size), length).view(-1, 1, BLOCK * group_size, length)
        yield Call(span.row.bank, lo, lo + stop - start, index, index + 1, length, True, mask, start)
        lo += stop - start
    for start, stop, length in _pieces(max(span.start, span.num_prompt), span.stop, 1):
        mask = causal_mask(torch.arange(start, stop), length)[:, None, None]
        yield Call(span.row.bank, lo, lo + stop - start, index, index + 1, length, True, mask)
        lo += stop - start


def _pieces(start: int, stop: int, block: int) -> Iterable[tuple[int, int, int]]:
    """Cuts positions start..stop where the padded length of their block changes."""
    while start < stop:
        length = padded_len((start // block + 1) * block)
        end = min(stop, length)
        yield start, end, length
        start = end
