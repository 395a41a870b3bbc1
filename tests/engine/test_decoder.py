"""The decoder against transformers in float32: whole, token by token, in chunks, forked; attention against its reference."""

import pytest
import torch
from torch import Tensor

from engine.tiny_models import VOCAB, StateCheckpoint, tiny
from ponder.accelerate.weights.dense import Float32
from ponder.core.errors import Unsupported
from ponder.engine.attend import Span, StepPlan, attend_group, attention, attention_reference, causal_mask, in_order
from ponder.engine.rows import Row, Rows, padded_len
from ponder.models.decoder import Decoder, load

CASES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]


def compute(decoder: Decoder, row: Row, tokens: Tensor, start: int, stop: int, num_prompt: int) -> Tensor:
    """Logits [stop - start, V] of tokens start:stop, given that those before have been computed in `row`."""
    plan = StepPlan(decoder.config, [Span(row, start, stop, num_prompt)])
    return decoder.logits(decoder.forward(tokens[start:stop], plan.positions, plan.attend))


@pytest.mark.parametrize(("family", "is_tied"), CASES)
@torch.inference_mode()
def test_logits_equal_transformers(family: str, is_tied: bool):
    checkpoint, hf = tiny(family, is_tied=is_tied)
    decoder = load(checkpoint, Float32(), None, torch.float32)
    tokens = torch.randint(VOCAB, (150,), generator=torch.Generator().manual_seed(1))
    wanted = hf(tokens[None]).logits[0]
    cuts = {"whole": [150], "decode": [*range(1, 20), *range(60, 70), 125, *range(126, 131), 150], "chunks": [7, 16, 40, 64, 65, 130, 150]}
    for name, stops in cuts.items():
        for num_prompt in (0, 70, 150):
            row = Rows(decoder.config, torch.float32).take(150)
            found = torch.cat([compute(decoder, row, tokens, a, b, num_prompt) for a, b in zip([0, *stops], stops) if a < b])
            assert (found - wanted).abs().max() < 1e-4, (name, num_prompt)


@torch.inference_mode()
def test_rows_of_a_step_are_kept_apart():
    """Prompts, chunks and single tokens of several sequences in one step, one of them a fork of another."""
    checkpoint, hf = tiny("llama")
    decoder = load(checkpoint, Float32(), None, torch.float32)
    rows = Rows(decoder.config, torch.float32)
    texts = [torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 90, 33, 140)]
    placed = [rows.take(len(t)) for t in texts]
    for text, row in zip(texts[:3], placed):
        compute(decoder, row, text, 0, len(text) - 1, 10)
    fork = rows.grown(rows.take(20), 70, 0)
    fork.kv(19).copy_(placed[0].kv(19))
    spans = [Span(row, len(t) - 1, len(t), 10) for t, row in zip(texts[:3], placed)]
    spans += [Span(placed[3], 0, 140, 100), Span(fork, 19, 20, 10)]
    text_of = dict(zip([*placed, fork], [*texts, texts[0]]))
    ordered = in_order(spans)
    plan = StepPlan(decoder.config, ordered)
    flat = torch.cat([text_of[s.row][s.start : s.stop] for s in ordered])
    logits = decoder.logits(decoder.forward(flat, plan.positions, plan.attend))
    at = 0
    for span in ordered:
        wanted = hf(text_of[span.row][None, : span.stop]).logits[0, span.start :]
        assert (logits[at : at + span.stop - span.start] - wanted).abs().max() < 1e-4
        at += span.stop - span.start


def test_attention_equals_its_reference():
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 2, 3, 16), torch.randn(5, 2, 64, 16), torch.randn(5, 2, 64, 16)
    mask = causal_mask(torch.tensor([0, 5, 20, 47, 63]), 64)[:, None, None]
    (out, lse), (wanted, wanted_lse) = attention(q, k, v, mask), attention_reference(q, k, v, mask)
    assert (out - wanted).abs().max() < 2e-6
    assert (lse - wanted_lse).abs().max() < 1e-5


def batch_dependence(group: int, attend) -> int:
    """Number of calls of another batch size whose rows differ. Values cancel, so that the order of sums is all there is."""
    torch.manual_seed(0)
    order = torch.randperm(192)
    k = torch.randn(1, 2, 96, 16).repeat(1, 1, 2, 1)[:, :, order].bfloat16()
    v = torch.randn(1, 2, 96, 16)
    v = torch.cat([v, -v], 2)[:, :, order].bfloat16()
    q, mask = torch.randn(40, 2, group, 16).bfloat16(), torch.zeros(40, 1, 1, 192)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outs = {
            n: [attend(q[i : i + n], k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1), mask[i : i + n]) for i in range(0, 40, n)]
            for n in (40, 8, 5, 1)
        }
    finally:
        torch.set_num_threads(num_threads)
    return sum(not torch.equal(torch.cat(out), outs[40][0]) for out in outs.values())


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 12, 48, 112])
def test_a_call_does_not_depend_on_its_batch(group: int):
    assert batch_dependence(group, attend_group) == 0


def test_the_batch_law_has_teeth():
    """Three query rows as they are fail it."""
    assert batch_dependence(3, lambda *call: attention(*call)[0]) > 0


def test_padded_lengths():
    lengths = [padded_len(n) for n in range(1, 5000)]
    assert all(n <= length < 2 * n + 64 and length % 16 == 0 for n, length in enumerate(lengths, 1))
    assert sorted(set(lengths))[:12] == [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def test_an_unknown_architecture_is_refused():
    checkpoint, _ = tiny("llama")
    config = type(checkpoint.config)(**{**vars(checkpoint.config), "arch": "mamba"})
    with pytest.raises(Unsupported, match="mamba"):
        load(StateCheckpoint(config, checkpoint.state), Float32())
