"""Layer plans on a tiny model: nothing dropped is plain decoding bit for bit; what leaves, resting and comes back is what plain PyTorch says,
token by token; no token goes through a layer twice; an answer is the same alone and in a crowd; and wrong implementations fail."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from accelerate.test_prompt_filters import FILTERS, ask_of, rotated
from engine.test_process import answers, bare, mixed_asks
from engine.tiny_models import ByteTokenizer, tiny, tiny_decoder
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.prompt.lazyllm import LazyLLM
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import WEIGHTS, attention_plan, cache_policy, layer_plan
from ponder.core.asks import GREEDY, Expansion, Extend, Extension, Prefix, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField, UnknownName
from ponder.core.pruning import LayerPlan
from ponder.engine import thinning_process
from ponder.engine.open import open_process
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.thinning_process import ThinningProcess, slots_before
from ponder.testing.laws_process import LAWS
from ponder.testing.laws_prompt import PLAN_LAWS

DECODER = tiny_decoder("qwen2")
SMALL = 300_000  # bytes of keys and values: too few for a crowd
LAZY = LazyLLM(keep=0.2, start=0.34, num_cuts=2)
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind; "


def thinning(plan: LayerPlan, *, decoder=DECODER, **settings) -> ThinningProcess:
    return ThinningProcess(decoder, ByteTokenizer(), Sarathi(), Settings(**({"kv_bytes": 1 << 24} | settings), layers=plan))


@pytest.mark.parametrize("plan", [LazyLLM(), LAZY, LazyLLM(keep=20), LazyLLM(keep=1.0)])
def test_laws_of_a_plan(plan: LayerPlan):
    for law in PLAN_LAWS:
        law(plan)


def test_a_plan_that_loses_the_newest_token_fails():
    class Blind(LazyLLM):
        def choose(self, seen, num):
            return torch.arange(num)

    with pytest.raises(AssertionError, match="last token"):
        PLAN_LAWS[0](Blind())
    with pytest.raises(BadField, match="the prompt's last among them"):
        answers(thinning(Blind(**vars(LAZY))), [ask_of(TEXT, 2)])


def test_laws_of_a_process():
    for law in LAWS:
        law(lambda: thinning(LAZY), chat("Say something.", max_tokens=24), 0.0)


@pytest.mark.parametrize("chunk", [512, 33])
def test_keeping_all_is_plain_decoding(chunk: int):
    asks = mixed_asks(3, [Prefix(chat("some words " * n, max_tokens=20)) for n in (1, 9, 20)])
    process = thinning(dataclasses.replace(LAZY, keep=1.0), chunk=chunk)
    plain = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(kv_bytes=1 << 24))
    assert [bare(a) for a in answers(process, asks)] == [bare(a) for a in answers(plain, asks)]
    assert process.num_back == 0


@pytest.mark.parametrize(("max_rows", "kv_bytes", "chunk"), [(3, 1 << 24, 33), (64, SMALL, 512), (5, SMALL, 7)])
def test_an_answer_is_the_same_whatever_runs_beside_it(max_rows: int, kv_bytes: int, chunk: int):
    prompts = [chat("y" * 70 + "x" * n, max_tokens=24) for n in (1, 60, 60)]
    crowd = thinning(LAZY, max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk)
    prefixes = [Prefix(p) for p in prompts]
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)[::2]
        found = answers(crowd, asks)
        alone = [answers(thinning(LAZY), [ask])[0] for ask in asks]
        assert [bare(a) for a in found] == [bare(a) for a in alone]
        grown = [a.prefix for a in found if isinstance(a, Extension)] + [c for a in found if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::3]
    assert crowd.num_back > 0
    assert not crowd.records
    crowd.drop_cache()
    assert crowd.pool.num_used == 0, "pages leak"


# the same, by plain PyTorch


class Slow:
    """LazyLLM over a transformers model, in lists: keys[l][p] and values, hidden states at rest, greedy."""

    def __init__(self, hf, plan: LazyLLM, ids: list[int]) -> None:
        self.hf, self.plan, self.num = hf, plan, len(ids)
        self.cuts = list(plan.cuts(3))
        self.keys: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = [{}, {}, {}]
        self.resting: dict[tuple[int, int], torch.Tensor] = {}  # (cut, place)
        self.visits: dict[tuple[int, int], int] = {}
        rows = {place: hf.model.embed_tokens(torch.tensor(token)) for place, token in enumerate(ids)}
        self.last = self.through(rows, self.num - 1)

    def through(self, rows: dict[int, torch.Tensor], newest: int) -> torch.Tensor:
        """Takes rows by place through all layers; the newest one's hidden state."""
        for layer in range(3):
            weights = self.layer(layer, rows, newest)
            if layer not in self.cuts:
                continue
            cut = self.cuts.index(layer)
            for place in list(rows):
                if place < self.num:
                    self.resting[cut, place] = rows.pop(place)
            here = [place for place in sorted(self.keys[layer]) if place < self.num]
            score = {place: sum(w.get(place, 0.0) for w in weights) for place in here}
            total = [sum(w[place] for place in here) for w in weights]  # of the prompt's tokens alone
            score = {place: sum(w[place] / t for w, t in zip(weights, total)) for place in here}
            best = sorted(here, key=lambda place: (place != self.num - 1, -score[place]))[: self.plan.num_kept(cut, self.num)]
            for place in sorted(best):
                if place not in self.keys[layer + 1]:
                    rows[place] = self.resting.pop((cut, place))
            rows = dict(sorted(rows.items()))
        return rows[newest]

    def layer(self, layer: int, rows: dict[int, torch.Tensor], newest: int) -> list[dict[int, float]]:
        """One layer, in place; what the newest row's heads looked at."""
        body, places = self.hf.model.layers[layer], list(rows)
        x = torch.stack(list(rows.values()))
        normed = body.input_layernorm(x)
        q, k = (w(normed).view(len(x), -1, 16) for w in (body.self_attn.q_proj, body.self_attn.k_proj))
        q, k = (torch.stack([turned(row, place) for row, place in zip(t, places)]) for t in (q, k))
        v = body.self_attn.v_proj(normed).view(len(x), 2, 16)
        for i, place in enumerate(places):
            self.keys[layer][place] = k[i], v[i]
            self.visits[layer, place] = self.visits.get((layer, place), 0) + 1
        out, seen = [], []
        for i, place in enumerate(places):
            before = [p for p in sorted(self.keys[layer]) if p <= place]
            read = []
            for head in range(6):
                scores = torch.stack([q[i, head] @ self.keys[layer][p][0][head // 3] for p in before]) / math.sqrt(16)
                weights = scores.softmax(0)
                read.append(sum(w * self.keys[layer][p][1][head // 3] for w, p in zip(weights, before)))
                if place == newest:
                    seen.append(dict(zip(before, weights.tolist())))
            out.append(torch.cat(read))
        x = x + body.self_attn.o_proj(torch.stack(out))
        x = x + body.mlp(body.post_attention_layernorm(x))
        for place, row in zip(places, x):
            rows[place] = row
        return seen

    def answer(self, num: int) -> list[int]:
        found = []
        for i in range(num):
            found.append(int(self.hf.lm_head(self.hf.model.norm(self.last)).argmax()))
            self.last = self.through({self.num + i: self.hf.model.embed_tokens(torch.tensor(found[-1]))}, self.num + i)
        return found


def turned(x_HE: torch.Tensor, place: int) -> torch.Tensor:
    return rotated(x_HE[:, None].expand(-1, place + 1, -1))[:, place]


def by_engine(plan: LazyLLM, num: int) -> tuple[list[int], list[set[int]], int]:
    """Tokens, what each stretch knows of the prompt at the end, and how many came back."""
    process = thinning(plan, decoder=tiny_decoder("llama", is_exact=True), chunk=31)
    ask = Extend(prefix=Prefix(chat(TEXT, max_tokens=num + 1)), seed=0, sampling=GREEDY)
    (answer,) = answers(process, [ask])
    entries = next(iter(process.shelf.prompts.values()))
    (longest,) = [entry for after, entry in entries.items() if len(after) == num]
    return list(answer.prefix.tokens), longest.record.known, process.num_back  # type: ignore[attr-defined, union-attr]


def by_pytorch(plan: LazyLLM, num: int) -> tuple[list[int], list[set[int]], int]:
    ids = ByteTokenizer().render((("user", TEXT),))
    slow = Slow(tiny("llama")[1], plan, ids)
    at_first = sum(len([p for p in slow.keys[cut + 1] if p < len(ids)]) for cut in slow.cuts)
    tokens = slow.answer(num)
    assert max(slow.visits.values()) == 1
    known = [{p for p in slow.keys[cut + 1] if p < len(ids)} for cut in slow.cuts]
    return tokens, known, sum(map(len, known)) - at_first


@torch.inference_mode()
def test_tokens_leave_and_come_back_as_in_plain_pytorch():
    tokens, known, num_back = by_pytorch(LAZY, 8)
    found, found_known, found_back = by_engine(LAZY, 8)
    assert found[:8] == tokens
    assert found_known == known
    assert found_back == num_back > 0


@torch.inference_mode()
def test_counts_are_exact():
    process = thinning(LAZY)
    answers(process, [Extend(prefix=Prefix(chat(TEXT, max_tokens=1)), seed=0, sampling=GREEDY)])
    (entries,) = process.shelf.prompts.values()
    num = len(TEXT) + 1
    assert [len(x) for x in entries[()].record.known] == [LAZY.num_kept(0, num), LAZY.num_kept(1, num)] == [int(num * 0.2**0.5), num // 5]  # type: ignore[attr-defined]
    assert (num - entries[()].pages.dropped == torch.tensor([[num] * 2, [int(num * 0.2**0.5)] * 2, [num // 5] * 2]).numpy()).all()


def test_what_rests_is_bounded_as_keys_are():
    process = thinning(LAZY, kv_bytes=SMALL)
    for i in range(30):
        answers(process, [Extend(prefix=Prefix(chat(TEXT + str(i), max_tokens=2)), seed=0, sampling=GREEDY)])
    assert 0 < process.resting_nbytes <= SMALL
    assert 1 < len(process.shelf) < 30
    assert process.nbytes <= 2 * SMALL


class Stale(LazyLLM):
    """Tokens that left stay away: the weakest of those that are known are named again."""

    def choose(self, seen, num):
        return torch.arange(seen.num - num, seen.num)


@pytest.mark.parametrize("wrong", ["late", "stale", "off"])
@torch.inference_mode()
def test_wrong_implementations_fail(wrong: str, monkeypatch):
    plan, wanted = LAZY, by_pytorch(LAZY, 8)
    if wrong == "late":
        monkeypatch.setattr(thinning_process, "slots_before", lambda pages, layer, stop, num: slots_before(pages, layer, stop - 1, num))
    elif wrong == "stale":
        plan = Stale(**vars(LAZY))
    else:
        monkeypatch.setattr(LazyLLM, "cuts", lambda self, num: (1,) if num == 3 else (0, 1))
        plan = dataclasses.replace(LAZY, num_cuts=1)
    tokens, known, num_back = by_engine(plan, 8)
    assert (tokens[:8], known, num_back) != wanted


def test_a_filtered_prompt_goes_through_a_plan():
    process = thinning(LAZY, prompt=FILTERS["gemfilter"])
    found = answers(process, [ask_of(TEXT, 8)])[0]
    assert process.prompt_len(chat(TEXT)) == int(0.4 * (len(TEXT) + 1))
    assert bare(found) == bare(answers(thinning(LAZY, prompt=FILTERS["gemfilter"], chunk=9), [ask_of(TEXT, 8)])[0])


def test_by_name_and_refused(tmp_path: Path):
    assert layer_plan("lazyllm:0.3") == LazyLLM(keep=0.3)
    assert LazyLLM().cuts(30) == [8, 15, 22]
    for bad, message in (
        (lambda: LazyLLM(start=1), "start"),
        (lambda: thinning(LazyLLM(num_cuts=3)), "no room"),
        (lambda: LazyLLM(keep=0), "keep=0"),
    ):
        with pytest.raises(BadField, match=message):
            bad()
    with pytest.raises(UnknownName):
        layer_plan("lazyllm:num_cut=3")
    speculation = Speculation(drafter=Ngram(), acceptor=Coupled(), control=Fixed(num=4))
    for beside in ({"cache": cache_policy("snapkv:0.5")}, {"attend": attention_plan("s2")}, {"speculation": speculation}):
        with pytest.raises(BadField, match="leave one of them out"):
            open_process(tmp_path, weights=WEIGHTS["bf16"], scheduler=Sarathi(), settings=Settings(layers=LAZY, **beside))
