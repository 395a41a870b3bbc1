"""One forward pass over a step's spans: the whole model for every row, or, where others leave keys for it, only what somebody asks for.

Of a prompt that a model with a tail (core.tail) reads, every row passes through the layers before the tail and leaves the keys and values of
all layers behind; through the tail itself pass the rows that are asked for (Span.asked) alone. What they read there is what they would
read if all rows had passed: the law of engine.attend says that a row's reading does not depend on how its prompt was cut.

Where keys are supplied (core.predictor), all rows of a prompt pass through the reader, whose own keys lie in layers of their own behind the
model's, in the same pages, so that prefixes are shared, forked and computed again with them. Through the model pass answers, and of a
prompt its last row where it is asked for. A prompt's keys are the supplied ones even there: so what lies at a place depends on whether it
is of a prompt, and never on who asked.

Shapes: T flat tokens, R rows that are asked for, D width, L layers, M of the reader.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.formats import Checkpoint, WeightFormat
from ponder.core.predictor import Predictor
from ponder.core.tail import Tail
from ponder.engine.attend import Attention, Span, StepPlan, in_order, slots_of
from ponder.models.decoder import Decoder, PlainBody, after, before, kinds_of_rows, rms_norm, rotate
from ponder.models.predictor import PackedPredictor, check_predictor, corrected, packed_maps
from ponder.models.tail import PackedTail, check_model, packed

Pairs = Mapping[int, tuple[Tensor, Tensor]]  # layer -> its keys (rotated) and values, [rows, K, E]


class Passes(Protocol):
    """The forward passes of a process."""

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        """Hidden rows [T, D] of the spans' tokens, whose keys and values are written; rows that nobody asks for may be no numbers."""
        ...

    def spared(self, span: Span) -> float:
        """FLOPs that a span costs less than a whole pass over it."""
        ...


@dataclass(frozen=True, eq=False)
class WholePasses:
    """Every row through every layer."""

    decoder: Decoder
    attention: Attention

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        plan = self.attention.plan(spans)
        return self.decoder.forward(torch.tensor(tokens), plan.positions, plan.attend, plan.prompts)

    def spared(self, span: Span) -> float:
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
        write(self.attention, dict(enumerate(keys, tail.start)), spans, plan.positions)
        rows, asked = parts_of(spans, lambda span: (max(span.start, span.asked), span.stop))
        hidden_TD = torch.full(x_TD.shape, torch.nan, dtype=decoder.dtype)  # so that nobody takes them for something
        if asked:
            cos, sin = angles
            some = [(k[rows], v[rows]) for k, v in keys]
            hidden_TD[rows] = self._behind(x_TD[rows], some, (cos[rows], sin[rows]), self.attention.plan(asked))
        return hidden_TD

    def spared(self, span: Span) -> float:
        """What rows that are not asked for do not compute in the tail, and the keys that layers share."""
        config, tail, (start, stop, asked) = self.decoder.config, self.tail, (span.start, span.stop, span.asked)
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


@dataclass(frozen=True, eq=False)
class SuppliedPasses:
    """Rows of prompts through the reader, those that are asked for and all others through the model."""

    decoder: Decoder
    attention: Attention
    reader: PackedPredictor

    def run(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        decoder, flat = self.decoder, torch.tensor(tokens)
        read, prompts = parts_of(spans, lambda span: (span.start, min(span.stop, span.num_prompt)))
        own, rest = parts_of(spans, lambda span: (max(span.start, min(span.asked, span.num_prompt)), span.stop))
        supplied = self._supplied(flat[read], prompts) if prompts else {}
        hidden_TD = torch.full((len(flat), decoder.config.dim), torch.nan, dtype=decoder.dtype)  # so that nobody takes them for something
        if rest:
            at = {row: i for i, row in enumerate(read.tolist())}
            given = [(i, at[row]) for i, row in enumerate(own.tolist()) if row in at]
            hidden_TD[own] = self._through(flat[own], rest, supplied, torch.tensor(given, dtype=torch.int64).reshape(-1, 2))
        return hidden_TD

    def spared(self, span: Span) -> float:
        """The layers that prompts do not pass, less what the reader and its maps cost."""
        config, start = self.decoder.config, span.start
        end = max(start, min(span.stop, span.num_prompt))
        heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        projected, behind = 2.0 * config.dim * (heads + 2 * keys), 2.0 * config.dim * heads + 6.0 * config.dim * config.ffn_dim

        def rows(stop: int, num_projected: int, num_behind: int) -> float:
            """Of places start..stop: so many layers up to their queries and keys, and so many behind these."""
            return (stop - start) * (num_projected * projected + num_behind * (behind + 4.0 * heads * (start + 1 + stop) / 2))

        maps = (end - start) * self.reader.num_products * 2.0 * keys * keys
        stop = max(start, min(end, span.asked))
        return rows(stop, config.num_layers, config.num_layers) - rows(end, self.reader.num, self.reader.num - 1) - maps

    def _supplied(self, tokens: Tensor, spans: Sequence[Span]) -> Pairs:
        """Keys and values of all layers, which are written, of tokens of prompts."""
        decoder, reader, plan = self.decoder, self.reader, self.attention.plan(spans)
        cos, sin = decoder.tables[0].at(plan.positions)
        unturned, runs, num_layers = (
            (torch.ones_like(cos), torch.zeros_like(sin)),
            kinds_of_rows(len(tokens), plan.prompts),
            decoder.config.num_layers,
        )
        x_TD, pairs = decoder.embedded(tokens), {}
        for at, body in enumerate(reader.bodies):
            q_THE, k_TKE, v_TKE = before(body, runs, x_TD, unturned)  # turned here, so that maps see keys as they are at any place
            for layer, (k, v) in reader.pairs_of(at, k_TKE, v_TKE).items():
                pairs[layer] = rotate(k, cos, sin).to(decoder.dtype), v.clone()
            q_THE, k_TKE = (rotate(x, cos, sin).to(decoder.dtype) for x in (q_THE, k_TKE))
            if at < reader.num - 1:
                x_TD = after(body, runs, x_TD, plan.attend(num_layers + at, q_THE, k_TKE, v_TKE))
        write(self.attention, pairs, spans, plan.positions)
        return pairs

    def _through(self, tokens: Tensor, spans: Sequence[Span], supplied: Pairs, given: Tensor) -> Tensor:
        """Hidden rows of tokens that pass through the model. given [n, 2]: rows whose keys are supplied, and where."""
        decoder, plan, (rows, at) = self.decoder, self.attention.plan(spans), given.T

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            if len(rows):
                k_TKE, v_TKE = (own.index_copy(0, rows, theirs[at]) for own, theirs in zip((k_TKE, v_TKE), supplied[layer], strict=True))
            return plan.attend(layer, q_THE, k_TKE, v_TKE)

        return decoder.forward(tokens, plan.positions, attend, plan.prompts)


def write(attention: Attention, pairs: Pairs, spans: Sequence[Span], positions: Tensor) -> None:
    """Keys and values of all the spans' rows, for those that come later."""
    pool, slots = attention.pool, [slots_of(span) for span in spans]
    for layer, (k_TKE, v_TKE) in pairs.items():
        at = torch.cat([torch.from_numpy(slot[layer]) for slot in slots]).reshape(-1)
        where = positions[:, None].expand(k_TKE.shape[:2]).reshape(-1)
        pool.write(at, k_TKE.reshape(-1, pool.width), v_TKE.reshape(-1, pool.width), where)


def parts_of(spans: Sequence[Span], bounds: Callable[[Span], tuple[int, int]]) -> tuple[Tensor, list[Span]]:
    """The flat rows between places `bounds(span)` of each span, and spans of these, in the order that a plan wants."""
    first: dict[Span, int] = {}
    at = 0
    for span in spans:
        start, stop = bounds(span)
        if start < stop:
            first[span if (start, stop) == (span.start, span.stop) else replace(span, start=start, stop=stop)] = at + start - span.start
        at += span.stop - span.start
    parts = in_order(first)
    return torch.tensor([row for part in parts for row in range(first[part], first[part] + part.stop - part.start)], dtype=torch.int64), parts


def with_tail(decoder: Decoder, tail: Tail, weights: WeightFormat) -> Decoder:
    """The decoder with a tail; as it is where no layer is changed. Raises BadField for another model's, Unsupported."""
    check_model(tail, decoder.model_id)
    tail.check(decoder.config)
    if not len(tail.q):
        return decoder
    norms = tuple(layer.attn_norm for layer in decoder.layers)
    found = packed(tail, decoder.config, norms, weights=weights, dtype=decoder.dtype)
    return replace(decoder, tail=found, model_id=decoder.model_id + tail.name)


def with_predictor(decoder: Decoder, predictor: Predictor, checkpoint: Checkpoint, weights: WeightFormat) -> Decoder:
    """The decoder with somebody who supplies keys of prompts. Raises BadField for another model's, Unsupported."""
    check_predictor(predictor, decoder.config, decoder.model_id)
    bodies = []
    for at, index in enumerate(predictor.layers):
        correction = predictor.correction(at)
        if not correction:
            bodies.append(decoder.bodies[index])
            continue
        layer = corrected(checkpoint, decoder.layers[index], index, correction, weights=weights)
        bodies.append(weights.fuse(layer, decoder.config) or PlainBody(layer, decoder.config, decoder.dtype))
    reader = PackedPredictor(bodies=tuple(bodies), maps=packed_maps(predictor, weights, decoder.dtype))
    return replace(decoder, reader=reader, model_id=decoder.model_id + predictor.name)


def passes_of(decoder: Decoder, attention: Attention) -> Passes:
    if decoder.reader is not None:
        return SuppliedPasses(decoder, attention, decoder.reader)
    return WholePasses(decoder, attention) if decoder.tail is None else TailPasses(decoder, attention, decoder.tail)


def num_key_layers(decoder: Decoder) -> int:
    """Layers that have keys of their own, a reader's included."""
    num = decoder.config.num_layers if decoder.tail is None else decoder.tail.start + decoder.tail.num_groups
    return num if decoder.reader is None else num + decoder.reader.num
