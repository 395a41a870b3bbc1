"""Text written in step is plain decoding's, states included."""

import itertools

import pytest
import torch

from engine.tiny_models import END, tiny_decoder, tiny_process
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt
from ponder.core.errors import Unsupported
from ponder.train import own_text
from ponder.train.own_text import batches, drawn, write
from ponder.train.rollouts import Whole

PROMPTS = ("a river", "b", "some longer words here", "xyz")
NUM = 12


def plain(decoder):
    """(tokens, states) of greedy answers, by the engine."""
    process, probe = tiny_process(decoder), Whole()
    tickets = [
        process.add(Extend(prefix=Prefix(Prompt(messages=(("raw", p),), max_tokens=NUM)), seed=0, sampling=GREEDY, probes=(probe,))) for p in PROMPTS
    ]
    done = {}
    while len(done) < len(tickets):
        done |= {ticket: answer.prefix for ticket, answer in process.step()}
    return [(done[t].tokens, torch.tensor(dict(done[t].readings)["state"])) for t in tickets]


def in_step(decoder, eos_ids=frozenset({END}), heat=0.0):
    process = tiny_process(decoder)
    ids = [process.tokenizer.render((("raw", p),)) for p in PROMPTS]
    return write(decoder, ids, num=NUM, temperatures=[heat] * len(ids), eos_ids=eos_ids, draws=torch.Generator().manual_seed(1))


def require_same(decoder):
    found = in_step(decoder)
    for row, states, (tokens, wanted) in zip(found.tokens_BN.tolist(), found.states_BND, plain(decoder), strict=True):
        assert tuple(t for t in row if t not in (-1, END)) == tokens
        assert torch.allclose(states[: len(tokens)].float(), wanted, atol=1e-4)


@pytest.mark.parametrize("family", ("llama", "qwen2"))
def test_is_plain_decoding(family):
    require_same(tiny_decoder(family, is_exact=True))


@pytest.mark.parametrize("wrong", ("sees what is not there yet", "one place late"))
def test_wrong_attention_is_found(wrong, monkeypatch):
    right = own_text.Sheet.step
    if wrong == "one place late":
        monkeypatch.setattr(own_text.Sheet, "step", lambda self, places: right(self, places + 1))
    else:
        attend = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(own_text.F, "scaled_dot_product_attention", lambda *args, attn_mask=None, **more: attend(*args, **more))
    with pytest.raises((AssertionError, IndexError)):
        require_same(tiny_decoder(is_exact=True))


def test_prompts_read_in_parts_are_the_same(monkeypatch):
    decoder = tiny_decoder(is_exact=True)
    whole = in_step(decoder)
    monkeypatch.setattr(own_text, "CHUNK", 50)  # two at a time
    assert torch.equal(in_step(decoder).tokens_BN, whole.tokens_BN)


def test_texts_end():
    """Behind the token that ends a text there is none, and the others go on."""
    decoder = tiny_decoder(is_exact=True)
    whole = in_step(decoder, frozenset()).tokens_BN
    end = int(whole[0, 4])
    cut = in_step(decoder, frozenset({end})).tokens_BN
    for row, wanted in zip(cut.tolist(), whole.tolist()):
        num = wanted.index(end) + 1 if end in wanted else NUM
        assert row == wanted[:num] + [-1] * (NUM - num)


def test_draws_are_the_models():
    """Frequencies of 40,000 draws from one row within four standard errors, and a greedy row beside them."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(40_001, 4)
    heat = torch.full((40_001, 1), 0.5)
    heat[0] = 0
    found = drawn(logits, heat, torch.Generator().manual_seed(0))
    assert found[0] == 2
    p = (logits[0] / 0.5).softmax(-1)
    share = found[1:].bincount(minlength=4) / 40_000
    assert bool(((share - p).abs() <= 4 * (p * (1 - p) / 40_000).sqrt()).all())


def test_batches_hold_every_prompt_once():
    prompts = [[0] * n for n in (5, 1, 9, 3, 3, 40, 2)]
    groups = list(batches(prompts, num=10, most=3, places=60))
    assert sorted(itertools.chain(*groups)) == list(range(7)) and max(map(len, groups)) == 3
    assert all(len(g) == 1 or len(g) * (max(len(prompts[i]) for i in g) + 10) <= 60 for g in groups)


def test_capped_scores_are_refused():
    decoder = tiny_decoder(is_exact=True)
    object.__setattr__(decoder.config, "attn_softcap", 50.0)
    with pytest.raises(Unsupported, match="windows or capped"):
        in_step(decoder)
