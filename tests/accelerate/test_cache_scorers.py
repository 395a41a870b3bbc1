"""Which keys each policy keeps: as kvpress does on the same numbers, as an obvious float64 reference on the whole attention matrix says,
and in the engine from a prompt in pieces as from the same prompt at once. What is off by one fails."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from accelerate.test_cache_policies import DECODER, SPECS, keeping, policy, read_prompt, shelved
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.cache.adakv import AdaKV
from ponder.accelerate.cache.h2o import H2O
from ponder.accelerate.cache.knorm import Knorm
from ponder.accelerate.cache.pyramid import Pyramid
from ponder.accelerate.cache.snapkv import SnapKV
from ponder.accelerate.cache.streaming_llm import StreamingLLM
from ponder.accelerate.cache.tova import Tova
from ponder.accelerate.cache.uniform import Uniform
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import CACHES, cache_policy
from ponder.core.errors import BadField
from ponder.core.evidence import QUANTUM, Needs, View, columns_of, scores_of
from ponder.core.keeping import chosen, largest_remainders
from ponder.engine.process import LocalProcess, Settings

L, H, K, E = 4, 6, 2, 16
KVPRESS = json.loads((Path(__file__).parent / "kvpress_kept.json").read_text())
METHODS = {  # of kvpress: our scorer and allocator
    "snapkv": (SnapKV(window=16), Uniform()),
    "streaming": (StreamingLLM(), Uniform()),
    "knorm": (Knorm(), Uniform()),
    "tova": (Tova(), Uniform()),
    "observed": (H2O(recent=0.0, is_mean=True), Uniform()),
    "pyramidkv": (SnapKV(window=16), Pyramid(beta=2, least=16)),
    "adakv": (SnapKV(window=16), AdaKV()),
}


def inputs(num: int, layer: int) -> tuple[Tensor, Tensor]:
    """(q [n, H, E], k [K, n, E]): those of benchmarks/peers/kvpress_kept.py."""
    rng = np.random.RandomState(1000 * layer + num)
    q, k = (rng.standard_normal((num, heads, E)).astype(np.float32) * 1.5 for heads in (H, K))
    return torch.from_numpy(q), torch.from_numpy(k).transpose(0, 1).contiguous()


def view_of(q: Tensor, k: Tensor, needs: Needs, layer: int = 0) -> View:
    num = len(q)
    positions = torch.arange(num).expand(len(k), num)
    first = needs.first_row(num)
    columns = columns_of(q[first:], k, positions, first) if needs.has_columns else None
    return View(layer=layer, num_layers=L, num_tokens=num, positions=positions, read=lambda: (k, k), columns=columns)


def kept_of(scorer, allocator, num: int, budget: int) -> list[list[list[int]]]:
    scores = torch.stack([scorer.score(view_of(*inputs(num, layer), scorer.needs, layer), budget).double() for layer in range(L)])
    counts = allocator.allot(scores, torch.full((L, K), num), budget)
    return [[chosen(scores[layer, head], int(counts[layer, head])).tolist() for head in range(K)] for layer in range(L)]


def kept_of_row(row) -> list[list[list[int]]]:
    return kept_of(*METHODS[row["method"]], row["num"], max(1, int(row["num"] * (1 - row["ratio"]))))


def name_of(row) -> str:
    return f"{row['method']}-{row['num']}-{row['ratio']}"


@pytest.mark.parametrize("row", [row for row in KVPRESS if row["method"] != "pyramidkv"], ids=name_of)
def test_kept_as_kvpress_keeps(row):
    """Head by head the same set."""
    assert kept_of_row(row) == row["kept"]


@pytest.mark.parametrize("row", [row for row in KVPRESS if row["method"] == "pyramidkv"], ids=name_of)
def test_pyramid_kept_as_kvpress_keeps(row):
    """The same up to one key of a layer: ours sum up to the budget, and kvpress rounds each."""
    for mine, theirs in ((a, b) for x, y in zip(kept_of_row(row), row["kept"], strict=True) for a, b in zip(x, y, strict=True)):
        smaller, larger = sorted((set(mine), set(theirs)), key=len)
        assert len(larger) - len(smaller) <= 1
        assert smaller <= larger


class NextToWhatWasMeant:
    """A scorer that is off by one: it gives a key the score of the one before it."""

    def __init__(self, scorer) -> None:
        self.scorer, self.needs = scorer, scorer.needs

    def score(self, view: View, budget: int) -> Tensor:
        return self.scorer.score(view, budget).roll(1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_off_by_one_is_not_what_kvpress_keeps(method: str):
    scorer, allocator = METHODS[method]
    row = next(row for row in KVPRESS if row["method"] == method)
    assert kept_of(NextToWhatWasMeant(scorer), allocator, row["num"], int(row["num"] * (1 - row["ratio"]))) != row["kept"]


def full_matrix(q: Tensor, k: Tensor, shift: int = 0) -> Tensor:
    """float64 [H, n, n]: all of attention. shift 1 sees one key too many, -1 one too few."""
    num = len(q)
    scores = q.double().transpose(0, 1) @ k.double().repeat_interleave(len(q[0]) // len(k), 0).transpose(1, 2) / math.sqrt(q.shape[-1])
    unseen = torch.arange(num) > torch.arange(num)[:, None] + shift
    return scores.masked_fill(unseen, -math.inf).softmax(-1).nan_to_num(0.0)


def reference(name: str, q: Tensor, k: Tensor, budget: int) -> list[list[int]]:
    """What each head keeps under a uniform budget, in plain words."""
    whole, num, heads = full_matrix(q, k), len(q), range(len(k))
    groups = [whole[h * 3 : h * 3 + 3] for h in heads]
    if name == "streaming":
        return [[*range(4), *range(num - budget + 4, num)] for _ in heads]
    if name == "knorm":
        ranked = [sorted(range(num), key=lambda j: float(k[h, j].double().norm())) for h in heads]
    elif name == "tova":
        received = whole[:, -1].mean(0)
        ranked = [[num - 1, *sorted(range(num - 1), key=lambda j: -float(received[j]))] for _ in heads]
    elif name == "h2o":
        recent = list(range(num - budget // 2, num))
        sums = [group.sum((0, 1)) for group in groups]
        ranked = [[*recent, *sorted(range(num - budget // 2), key=lambda j: -float(s[j]))] for s in sums]
    else:
        recent = list(range(num - 4, num))
        means = [group[:, -4:, :-4].mean((0, 1)).tolist() for group in groups]
        pooled = [[sum(m[max(0, j - 2) : j + 3]) / 5 for j in range(num - 4)] for m in means]
        ranked = [[*recent, *sorted(range(num - 4), key=lambda j: -p[j])] for p in pooled]
    return [sorted(r[:budget]) for r in ranked]


def rows_in_engine(text: str) -> list[tuple[Tensor, Tensor]]:
    """(q [n, H, E], k [K, n, E]) of each layer of the tiny model."""
    process = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    found: list[tuple[Tensor, Tensor]] = []
    forward = process.decoder.forward
    tokens = torch.tensor(process.tokenizer.render((("user", text),)))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found.append((q.clone(), k.clone().transpose(0, 1)))
        groups = (x.transpose(0, 1)[None].float() for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*groups, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1).to(q.dtype)

    with torch.inference_mode():
        forward(tokens, torch.arange(len(tokens)), attend, [(0, len(tokens))])
    return found


@pytest.mark.parametrize("name", ["snapkv", "streaming", "h2o", "tova", "knorm"])
@pytest.mark.parametrize("chunk", [7, 512])
def test_the_engine_keeps_what_the_reference_says(name: str, chunk: int):
    """First layer: later ones see rounding of the layers before, which the reference has not."""
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    process = keeping(policy(name, 0.3), chunk=chunk)
    read_prompt(process, text)
    pages = shelved(process)
    budget = int(0.3 * pages.num_tokens)
    q, k = rows_in_engine(text)[0]
    positions, _ = process.keeper._slots(pages, 0, pages.num_tokens)
    assert positions.tolist() == reference(name, q, k, budget)


def test_columns_equal_the_whole_matrix_and_any_cut_gives_the_same_bits():
    q, k = inputs(311, 1)
    positions = torch.arange(311).expand(K, 311)
    whole = columns_of(q, k, positions, 0)
    wanted = full_matrix(q, k).sum(1).view(K, 3, 311).sum(1)
    assert (whole - wanted).abs().max() < 1e-5
    for shift in (-1, 1):
        assert (whole - full_matrix(q, k, shift).sum(1).view(K, 3, 311).sum(1)).abs().max() > 1e-2, "an off-by-one in the mask is not seen"
    for cuts in ((0, 64, 311), (0, 1, 63, 65, 200, 311), tuple(range(0, 312, 13))):
        parts = torch.zeros(K, 311, dtype=torch.float64)
        for start, stop in zip(cuts, (*cuts[1:], 311)):
            parts[:, :stop] += columns_of(q[start:stop], k[:, :stop], positions[:, :stop], start)
        assert torch.equal(parts, whole)
    assert torch.equal((whole / QUANTUM).round(), whole / QUANTUM)


def test_a_row_of_evidence_sees_its_window_and_its_cap():
    q, k = inputs(40, 0)
    positions, at = torch.arange(40).expand(K, 40), torch.arange(40)
    plain = scores_of(q, k, positions, at)
    windowed = scores_of(q, k, positions, at, window=8)
    assert (windowed[0, 0, 39] > -math.inf).nonzero()[:, 0].tolist() == list(range(32, 40))
    seen = at <= at[:, None]
    assert torch.allclose(scores_of(q, k, positions, at, softcap=2.0)[..., seen], 2 * torch.tanh(plain[..., seen] / 2))


def test_decayed_columns_in_the_engine_do_not_depend_on_chunks():
    text = "some words and other words, " * 5
    found = []
    for chunk in (5, 64, 512):
        process = keeping(cache_policy("h2o:0.3,decay=0.9,recent=0"), chunk=chunk)
        read_prompt(process, text)
        pages = shelved(process)
        found.append([process.keeper._slots(pages, layer, pages.num_tokens)[0].tolist() for layer in range(3)])
    assert found[0] == found[1] == found[2]
    undecayed = keeping(cache_policy("h2o:0.3,recent=0"))
    read_prompt(undecayed, text)
    assert undecayed.keeper._slots(shelved(undecayed), 0, shelved(undecayed).num_tokens)[0].tolist() != found[0][0]


@pytest.mark.parametrize("allocator", [Uniform(), Pyramid(least=2), AdaKV()])
def test_allocators_give_out_the_whole_budget(allocator):
    generator = torch.Generator().manual_seed(1)
    for trial in range(30):
        num = torch.randint(1, 60, (5, 3), generator=generator) if trial % 2 else torch.full((5, 3), 60)
        scores = torch.rand(5, 3, 60, generator=generator).double().masked_fill(torch.arange(60) >= num[..., None], -math.inf)
        budget = int(torch.randint(1, 61, (), generator=generator))
        counts = allocator.allot(scores, num, budget)
        assert (counts <= num).all()
        assert (counts >= 0).all()
        if isinstance(allocator, AdaKV):
            assert (counts.sum(1) == num.sum(1).clamp(max=3 * budget)).all()
        else:
            assert counts.sum() == min(15 * budget, int(num.sum()))


def test_bad_settings():
    assert set(SPECS) == set(CACHES)
    with pytest.raises(BadField, match="num_rows=0"):
        Needs(has_columns=True, num_rows=0)
    with pytest.raises(BadField, match="shares sum to 9"):
        largest_remainders(torch.full((3,), 3.0), torch.full((3,), 3), 5)
