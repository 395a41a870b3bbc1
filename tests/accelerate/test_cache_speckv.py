"""SpecKV: what a drafted continuation of the prompt attends to is what plain PyTorch says, and leaves no trace."""

import math

import pytest
import torch

from accelerate.test_cache_policies import policy, read_prompt, shelved
from accelerate.test_prompt_filters import heads_of
from engine.test_process import answers
from engine.tiny_models import ByteTokenizer, tiny, tiny_decoder
from ponder.accelerate.cache.after_prompt import AfterPrompt
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.cache.speckv import SpecKV
from ponder.accelerate.cache.uniform import Uniform
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Float32
from ponder.core.asks import GREEDY, Extend, Prefix, chat
from ponder.core.errors import BadField
from ponder.core.keeping import Policy
from ponder.engine import ahead
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import Settings
from ponder.models.decoder import load

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind; "
CHOSEN = SpecKV(window=4, ahead=5, kernel=3)


def speckv(scorer: SpecKV, decoder, twins=None, keep: float = 0.4) -> KeepingProcess:
    chosen = Policy(name="speckv", scorer=scorer, allocator=Uniform(), evictor=Drop(), trigger=AfterPrompt(), keep=keep)
    return KeepingProcess(decoder, ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24, cache=chosen, twins=twins))


def slow_kept(hf, drafter, ids: list[int], chosen: SpecKV, keep: float) -> list[list[set[int]]]:
    """Places that each head of each layer keeps, of a prompt that `drafter` continues."""
    num, whole = len(ids), list(ids)
    for _ in range(chosen.ahead):
        whole.append(int(drafter(torch.tensor([whole])).logits[0, -1].argmax()))
    hidden = hf(torch.tensor([whole]), output_hidden_states=True).hidden_states
    found = []
    for layer in range(3):
        q, k = heads_of(hf, hidden[layer][0], layer)
        scores = torch.zeros(2, num)
        for i in range(num - chosen.window, len(whole)):
            weights = torch.softmax(torch.einsum("he,hne->hn", q[:, i], k[:, : i + 1]) / math.sqrt(16), 1)
            scores[:, : min(i + 1, num)] += weights[:, :num].view(2, 3, -1).sum(1)
        scores[:, num - chosen.window :] = 0
        pooled = torch.stack([scores[:, max(0, j - 1) : j + 2].amax(1) for j in range(num)], 1)
        rest = int(keep * num) - chosen.window
        recent = set(range(num - chosen.window, num))
        found.append([recent | set(sorted(range(num - chosen.window), key=lambda j: -float(pooled[head, j]))[:rest]) for head in range(2)])
    return found


def kept(process: KeepingProcess) -> list[list[set[int]]]:
    read_prompt(process, TEXT)
    pages = shelved(process)
    rows = [process.keeper._slots(pages, layer, pages.num_tokens)[0] for layer in range(3)]
    return [[set(head[head >= 0].tolist()) for head in layer] for layer in rows]


def agreement(found: list[list[set[int]]], wanted: list[list[set[int]]]) -> float:
    pairs = [(a, b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs)


@pytest.mark.parametrize("other", [False, True], ids=["itself", "another"])
@torch.inference_mode()
def test_keys_that_stay_are_those_of_plain_pytorch(other: bool):
    ids = ByteTokenizer().render((("user", TEXT),))
    hf, drafter = tiny("llama")[1], tiny("llama", seed=5)[1]
    twins = (lambda twin: (tiny_decoder_of(5), ByteTokenizer())) if other else None
    chosen = SpecKV(window=4, ahead=5, kernel=3, model="small" if other else None)
    wanted = slow_kept(hf, drafter if other else hf, ids, chosen, 0.4)
    found = kept(speckv(chosen, tiny_decoder("llama", is_exact=True), twins))
    assert found == wanted
    blind = kept(speckv(SpecKV(window=4, ahead=1, kernel=3), tiny_decoder("llama", is_exact=True)))
    assert agreement(blind, wanted) < 1, "the continuation decides nothing"


def tiny_decoder_of(seed: int):
    return load(tiny("llama", seed=seed)[0], Float32(), None, torch.float32)


@torch.inference_mode()
def test_a_draft_that_is_read_one_place_off_keeps_others(monkeypatch):
    """The law above has teeth."""
    plain = ahead.Ahead._read

    def late(self, branch, record, tokens, num_prompt):
        hidden = plain(self, branch, record, tokens, num_prompt)
        for rows in record.rows:
            start, q, lse = rows[-1]
            rows[-1] = start, q.roll(1, 1), lse  # the wrong heads' queries
        return hidden

    wanted = kept(speckv(CHOSEN, tiny_decoder("llama", is_exact=True)))
    monkeypatch.setattr(ahead.Ahead, "_read", late)
    assert kept(speckv(CHOSEN, tiny_decoder("llama", is_exact=True))) != wanted


def test_the_draft_leaves_no_page_and_no_key():
    process = speckv(CHOSEN, tiny_decoder("llama"))
    read_prompt(process, TEXT)
    assert process.pool.num_used == shelved(process).num_pages.sum()
    process.drop_cache()
    assert process.pool.num_used == 0


def test_it_looks_only_where_something_is_dropped():
    process = speckv(CHOSEN, tiny_decoder("llama"), keep=1.0)
    plain = speckv(CHOSEN, tiny_decoder("llama"), keep=0.4)
    ask = Extend(prefix=Prefix(chat(TEXT, max_tokens=3)), seed=0, sampling=GREEDY)
    whole, looked = (answers(p, [ask])[0].cost.flops for p in (process, plain))
    assert looked > whole + 4 * process.flops(1, 70)


def test_refused():
    with pytest.raises(BadField, match="ahead=0"):
        SpecKV(ahead=0)
    with pytest.raises(BadField, match="opens no other model"):
        speckv(SpecKV(model="small"), tiny_decoder("llama"))
    assert policy("speckv", 0.4).scorer.needs.num_ahead == 16  # type: ignore[attr-defined]
