"""One forward pass over a step's spans: the whole model for every row, or, where the model has a tail, only what somebody asks for.

Of a prompt that a model with a tail (core.tail) reads, every row passes through the layers before the tail and leaves the keys and values of
all layers behind; through the tail itself pass the rows that are asked for (Span.asked) alone. What they read there is what they would
read if all rows had passed: the law of engine.attend says that a row's reading does not depend on how its prompt was cut.

Shapes: T flat tokens, R rows that are asked for, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.formats import ModelConfig, WeightFormat
from ponder.core.tail import Tail
from ponder.engine.attend import Attention, Span, StepPlan, in_order, slots_of
from ponder.models.decoder import Decoder, after, kinds_of_rows, rms_norm
from ponder.models.tail import PackedTail, check_model, packed


class Passes(Protocol):
    """The forward passes of a process."""

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        """Hidden rows [T, D] of the spans' tokens, whose keys and values are written; rows that nobody asks for may be no numbers."""
        ...

    def spared(self, start: int, stop: int, asked: int) -> float:
        """FLOPs that places start..stop of a span cost less than a whole pass over them."""
        ...


@dataclass(frozen=True, eq=False)
class WholePasses:
    """Every row through every layer."""

    decoder: Decoder
    attention: Attention

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        plan = self.attention.plan(spans)
        return self.decoder.forward(torch.tensor(tokens), plan.positions, plan.attend, plan.prompts)

    def spared(self, start: int, stop: int, asked: int) -> float:
        return 0.0


@dataclass(frozen=True, eq=False)
class TailPasses:
    """Rows that are asked for through every layer, all others as far as the tail."""

    decoder: Decoder
    attention: Attention
    tail: PackedTail

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        decoder, tail, plan = self.decoder, self.tail, self.attention.plan(spans)
        x_TD = decoder.through(range(tail.start), decoder.embedded(torch.tensor(tokens)), plan.positions, plan.attend, prompts=plan.prompts)
        angles = decoder.tables[decoder.table_of[tail.start]].at(plan.positions)
        keys = tail.keys_of(x_TD, angles)
        if all(span.asked <= span.start for span in spans):
            return self._behind(x_TD, keys, angles, plan)
        self._write(keys, spans, plan.positions)
        rows, asked = asked_of(spans)
        hidden_TD = torch.full(x_TD.shape, torch.nan, dtype=decoder.dtype)  # so that nobody takes them for something
        if asked:
            cos, sin = angles
            some = [(k[rows], v[rows]) for k, v in keys]
            hidden_TD[rows] = self._behind(x_TD[rows], some, (cos[rows], sin[rows]), self.attention.plan(asked))
        return hidden_TD

    def spared(self, start: int, stop: int, asked: int) -> float:
        """What rows that are not asked for do not compute in the tail, and the keys that layers share."""
        config, tail = self.decoder.config, self.tail
        end, heads = max(start, min(stop, asked)), config.num_heads * config.head_dim
        per_row = 4.0 * heads * (start + 1 + end) / 2 + 4.0 * config.dim * heads + 6.0 * config.dim * config.ffn_dim
        shared = 4.0 * config.dim * config.num_kv_heads * config.head_dim * (tail.num - tail.num_groups)
        return (end - start) * tail.num * per_row + (stop - start) * shared

    def _behind(self, x_RD: Tensor, keys: Sequence[tuple[Tensor, Tensor]], angles: tuple[Tensor, Tensor], plan: StepPlan) -> Tensor:
        """Hidden rows of all that the plan holds, whose keys and values are written."""
        decoder, tail, runs = self.decoder, self.tail, kinds_of_rows(len(x_RD), plan.prompts)
        for layer in range(tail.start, tail.start + tail.num):
            group = tail.group(layer)
            out_RX = plan.attend(group, tail.queries_of(layer, x_RD, angles), *keys[group - tail.start])
            x_RD = after(decoder.bodies[layer], runs, x_RD, out_RX)
        return rms_norm(x_RD, decoder.norm, decoder.config.norm_eps, decoder.dtype)

    def _write(self, keys: Sequence[tuple[Tensor, Tensor]], spans: Sequence[Span], positions: Tensor) -> None:
        """Keys and values of all rows, for those that come later."""
        pool, slots = self.attention.pool, [slots_of(span) for span in spans]
        for group, (k_TKE, v_TKE) in enumerate(keys, self.tail.start):
            at = torch.cat([torch.from_numpy(slot[group]) for slot in slots]).reshape(-1)
            where = positions[:, None].expand(k_TKE.shape[:2]).reshape(-1)
            pool.write(at, k_TKE.reshape(-1, pool.width), v_TKE.reshape(-1, pool.width), where)


def asked_of(spans: Sequence[Span]) -> tuple[Tensor, list[Span]]:
    """The rows that are asked for, and their spans, in the order that a plan wants."""
    first: dict[Span, int] = {}
    at = 0
    for span in spans:
        start = max(span.start, span.asked)
        if start < span.stop:
            first[span if start == span.start else replace(span, start=start)] = at + start - span.start
        at += span.stop - span.start
    asked = in_order(first)
    return torch.tensor([row for span in asked for row in range(first[span], first[span] + span.stop - span.start)], dtype=torch.int64), asked


def with_tail(decoder: Decoder, tail: Tail, weights: WeightFormat) -> Decoder:
    """The decoder with a tail; as it is where no layer is changed. Raises BadField for another model's, Unsupported."""
    check_model(tail, decoder.model_id)
    tail.check(decoder.config)
    if not len(tail.q):
        return decoder
    norms = tuple(layer.attn_norm for layer in decoder.layers)
    found = packed(tail, decoder.config, norms, weights=weights, dtype=decoder.dtype)
    return replace(decoder, tail=found, model_id=decoder.model_id + tail.name)


def passes_of(decoder: Decoder, attention: Attention) -> Passes:
    return WholePasses(decoder, attention) if decoder.tail is None else TailPasses(decoder, attention, decoder.tail)


def num_key_layers(decoder: Decoder) -> int:
    """Layers that have keys of their own."""
    config: ModelConfig = decoder.config
    return config.num_layers if decoder.tail is None else decoder.tail.start + decoder.tail.num_groups
