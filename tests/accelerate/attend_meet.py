"""Runs an attention plan on rows, by the compiled kernel or by PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.core.attention_plan import AttentionPlan
from ponder.core.formats import ModelConfig
from ponder.engine.attend import Attention, Span, in_order
from ponder.engine.pages import PLAIN, KVFormat, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.planned import PlannedAttention
from ponder.models.decoder import rotate
from ponder.models.rotary import rotary_rows
from ponder.testing.laws_attend import Rows


def config_of(rows: Rows, **settings) -> ModelConfig:
    return ModelConfig(
        arch="llama", num_layers=rows.num_layers, dim=8, num_heads=rows.q_NHE.shape[1], num_kv_heads=rows.k_NKE.shape[1],
        head_dim=rows.q_NHE.shape[2], ffn_dim=8, vocab_size=8, context_len=1 << 16, norm_eps=1e-5, rope_theta=1e4, **settings,
    )  # fmt: skip


def open_attention(plan: AttentionPlan | None, config: ModelConfig, *, is_native: bool, kv: KVFormat = PLAIN) -> Attention:
    pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), torch.bfloat16 if is_native else torch.float32, 1 << 27, kv)
    return Attention(config, pool, is_native=is_native) if plan is None else PlannedAttention(config, pool, plan, is_native=is_native)


def placed(rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as an attention gets them: rotated to their places, rounded."""
    cos, sin = rotary_rows(config_of(rows), "global", 0, len(rows))
    return rotate(rows.q_NHE, cos, sin).to(dtype), rotate(rows.k_NKE, cos, sin).to(dtype), rows.v_NKE.to(dtype)


def meet_together(attention: Attention, crowd: Sequence[tuple[Rows, int]], stops: Sequence[Sequence[int]]) -> list[Tensor]:
    """What each of several sequences (rows, prompt tokens) reads, in steps: step i ends each where stops[i] says."""
    inputs = [placed(rows, attention.pool.dtype) for rows, _ in crowd]
    sequences = [Pages(attention.pool) for _ in crowd]
    outs: list[list[Tensor]] = [[] for _ in crowd]
    for ends in stops:
        spans = []
        for sequence, (_, num_prompt), stop in zip(sequences, crowd, ends, strict=True):
            if stop > sequence.num_tokens:
                assert sequence.reserve(stop)
                spans.append(Span(sequence, sequence.num_tokens, stop, num_prompt))
        ordered = in_order(spans)
        numbers = [sequences.index(span.sequence) for span in ordered]
        parts = [tuple(x[span.start : span.stop] for x in inputs[i]) for i, span in zip(numbers, ordered, strict=True)]
        found = attention.plan(ordered).attend(crowd[0][0].layer, *(torch.cat(x) for x in zip(*parts, strict=True)))
        for i, span, out in zip(numbers, ordered, found.split([s.stop - s.start for s in ordered]), strict=True):
            span.sequence.num_tokens = span.stop
            outs[i].append(out)
    return [torch.cat(out).double().unflatten(1, (rows.q_NHE.shape[1], -1)) for out, (rows, _) in zip(outs, crowd, strict=True)]


def meet_with(*, is_native: bool):
    """A `meet` of the laws: all tokens are of the prompt."""

    def meet(plan: AttentionPlan | None, rows: Rows, stops: Sequence[int]) -> Tensor:
        attention = open_attention(plan, config_of(rows), is_native=is_native)
        return meet_together(attention, [(rows, len(rows))], [[stop] for stop in stops])[0]

    return meet
