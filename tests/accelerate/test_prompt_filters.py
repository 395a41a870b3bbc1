"""Every prompt filter on a tiny model: nothing dropped is plain decoding bit for bit; what is kept is what plain PyTorch would keep; the
answer is that of the kept tokens as a prompt of their own, alone and in a crowd; and wrong implementations fail."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from engine.test_process import answers, bare, mixed_asks
from engine.tiny_models import ByteTokenizer, tiny, tiny_decoder
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.prompt.gemfilter import GemFilter
from ponder.accelerate.prompt.specpc import SpecPC
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import attention_plan, cache_policy, prompt_filter
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField, PromptTooLong, UnknownName
from ponder.core.pruning import PromptFilter
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import LocalProcess, Settings
from ponder.testing import laws_prompt
from ponder.testing.laws_process import LAWS

DECODER = tiny_decoder("qwen2")
FILTERS: dict[str, PromptFilter] = {  # with settings that are small beside these prompts
    "gemfilter": GemFilter(keep=0.4, layer=1, first=2, last=4),
    "specpc": SpecPC(keep=0.4, start=1, window=4, kernel=4, neighbours=3),
}
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind; " * 2


def filtering(chosen: PromptFilter | None, *, decoder=DECODER, **settings) -> LocalProcess:
    bounds = Settings(**({"kv_bytes": 1 << 24} | settings), prompt=chosen)
    return (LocalProcess if bounds.cache is None else KeepingProcess)(decoder, ByteTokenizer(), Sarathi(), bounds)


def ask_of(text: str, num: int = 12, seed: int = 3) -> Extend:
    return Extend(prefix=Prefix(chat(text, max_tokens=num)), seed=seed, sampling=Sampling(temperature=1.0))


def kept_ids(process: LocalProcess, text: str = TEXT) -> list[int]:
    answers(process, [ask_of(text, 1)])
    return process.prompts.of(ByteTokenizer().render((("user", text),)))


@dataclasses.dataclass(frozen=True)
class OnePrompt(ByteTokenizer):
    """A tokenizer that knows one prompt."""

    ids: tuple[int, ...] = ()

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        return list(self.ids)


@pytest.mark.parametrize("law", laws_prompt.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", FILTERS)
def test_laws_of_a_filter(law, name: str):
    law(FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_laws_of_a_process(name: str):
    for law in LAWS:
        law(lambda: filtering(FILTERS[name]), chat("Say something.", max_tokens=24), 0.0)


@pytest.mark.parametrize("keep", [1.0, 4096])
@pytest.mark.parametrize("name", FILTERS)
def test_keeping_all_is_plain_decoding(name: str, keep: float):
    asks = mixed_asks(3, [Prefix(chat("some words " * n, max_tokens=20)) for n in (1, 9, 20)])
    found = answers(filtering(dataclasses.replace(FILTERS[name], keep=keep)), asks)
    assert [bare(a) for a in found] == [bare(a) for a in answers(filtering(None), asks)]


# what is kept, by plain PyTorch


def rotated(x: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """[heads, N, E] turned to positions 0, 1, ..."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def heads_of(hf, hidden: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [6, N, 16] and keys, repeated for their groups, of the rows that enter a layer."""
    body = hf.model.layers[layer]
    normed = body.input_layernorm(hidden)
    q = body.self_attn.q_proj(normed).view(len(hidden), 6, 16).transpose(0, 1)
    k = body.self_attn.k_proj(normed).view(len(hidden), 2, 16).transpose(0, 1)
    return rotated(q), rotated(k).repeat_interleave(3, 0)


def slow_gemfilter(hf, ids: list[int], chosen: GemFilter) -> list[int]:
    hidden = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[int(chosen.layer)][0]
    q, k = heads_of(hf, hidden, int(chosen.layer))
    totals = [sum(float(q[h, -1] @ k[h, j]) for h in range(6)) for j in range(len(ids))]
    reach = chosen.kernel // 2
    means = [sum(totals[max(0, j - reach) : j + reach + 1]) / chosen.kernel for j in range(len(ids))]
    num = int(chosen.keep * len(ids))
    kept = [*range(len(ids) - chosen.last, len(ids)), *range(chosen.first)]
    kept += [j for j in sorted(range(len(ids)), key=lambda j: -means[j]) if j not in kept]
    return sorted(kept[:num])


def slow_specpc(hf, ids: list[int], chosen: SpecPC) -> list[int]:
    hidden = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
    num, scores = len(ids), [0.0] * len(ids)
    for layer in range(chosen.start, 3):
        q, k = heads_of(hf, hidden[layer][0], layer)
        for i in range(num - chosen.window, num):
            growing = (i - num + chosen.window) / (chosen.window - 1)
            for h in range(6):
                weights = torch.softmax(q[h, i] @ k[h, : i + 1].T / math.sqrt(16), 0).tolist()
                scores = [max(s, growing * w) for s, w in zip(scores, weights + [0.0] * num)]
    back = (chosen.kernel - 1) // 2
    pooled = [max(scores[max(0, j - back) : j - back + chosen.kernel]) for j in range(num)]
    wanted = int(chosen.keep * num)
    kept = list(range(num - chosen.window, num))
    for j in sorted(range(num), key=lambda j: -pooled[j])[:wanted]:
        back = (chosen.neighbours - 1) // 2
        for step in sorted(range(-back, chosen.neighbours - back), key=abs):
            at = min(max(j + step, 0), num - 1)
            kept += [at] if at not in kept else []
    return sorted(kept[:wanted])


SLOW: dict[str, Callable[..., list[int]]] = {"gemfilter": slow_gemfilter, "specpc": slow_specpc}


def require_reference(name: str, chosen: PromptFilter, text: str, family: str) -> None:
    ids = ByteTokenizer().render((("user", text),))
    wanted = [ids[i] for i in SLOW[name](tiny(family)[1], ids, FILTERS[name])]
    found = kept_ids(filtering(chosen, decoder=tiny_decoder(family, is_exact=True), chunk=37), text)
    assert found == wanted, f"kept {found}, plain PyTorch keeps {wanted}"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", FILTERS)
@torch.inference_mode()
def test_what_is_kept_is_what_plain_pytorch_keeps(name: str, family: str):
    for text in (TEXT, "".join(chr(33 + 7 * i % 90) for i in range(101))):
        require_reference(name, FILTERS[name], text, family)


class Off(GemFilter):
    """A filter whose places are one too far."""

    def choose(self, seen, num):
        return (super().choose(seen, num) + 1).clamp(max=seen[0].num - 1)


class Short(GemFilter):
    def choose(self, seen, num):
        return super().choose(seen, num)[1:]


class Early(GemFilter):
    """Looks at the layer before the one it says."""

    def layers(self, num_layers):
        return (super().layers(num_layers)[0] - 1,)


@pytest.mark.parametrize("wrong", [Off, Short, Early])
def test_wrong_filters_fail(wrong):
    settings = {f.name: getattr(FILTERS["gemfilter"], f.name) for f in dataclasses.fields(GemFilter)}
    mutant = wrong(**settings)
    with pytest.raises(AssertionError), torch.inference_mode():
        for law in laws_prompt.LAWS:
            law(mutant)
        require_reference("gemfilter", mutant, TEXT, "llama")


# the answer

BESIDE: dict[str, dict] = {
    "alone": {},
    "draft": {"speculation": Speculation(drafter=Ngram(), acceptor=Coupled(), control=Fixed(num=4))},
    "cache": {"cache": cache_policy("snapkv:0.5,window=4")},
    "attend": {"attend": attention_plan("s2:window=64")},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", FILTERS)
def test_an_answer_is_that_of_the_kept_tokens_as_a_prompt(name: str, beside: str):
    process = filtering(FILTERS[name], **BESIDE[beside])
    found = answers(process, [ask_of(TEXT, 16)])[0]
    ids = kept_ids(process)
    bounds = Settings(kv_bytes=1 << 24, **BESIDE[beside])
    plain = (LocalProcess if bounds.cache is None else KeepingProcess)(DECODER, OnePrompt(ids=tuple(ids)), Sarathi(), bounds)
    wanted = answers(plain, [ask_of(TEXT, 16)])[0]
    assert len(ids) == process.prompt_len(chat(TEXT)) == int(0.4 * (len(TEXT) + 1))
    assert bare(found) == bare(wanted)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("max_rows", "kv_bytes", "chunk"), [(3, 1 << 24, 33), (64, 110_000, 512), (5, 110_000, 7)])
def test_an_answer_is_the_same_whatever_runs_beside_it(name: str, max_rows: int, kv_bytes: int, chunk: int):
    prompts = [chat("y" * 70 + "x" * n, max_tokens=24) for n in (1, 60, 60)]
    crowd = filtering(FILTERS[name], max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk)
    asks = mixed_asks(1, [Prefix(p) for p in prompts])
    alone = [answers(filtering(FILTERS[name]), [ask])[0] for ask in asks]
    assert [bare(a) for a in answers(crowd, asks)] == [bare(a) for a in alone]
    assert not crowd.prompts.readings
    crowd.drop_cache()
    assert crowd.pool.num_used == crowd.prompts.pool.num_used == 0, "pages leak"


def test_prompts_that_begin_alike_are_begun_once():
    process = filtering(FILTERS["gemfilter"])
    first, second = (answers(process, [ask_of(TEXT + end)])[0].cost.flops for end in ("one", "two"))
    alone = answers(filtering(FILTERS["gemfilter"]), [ask_of(TEXT + "two")])[0]
    assert answers(process, [ask_of(TEXT + "two")])[0].prefix == alone.prefix
    assert second < first
    assert alone.cost.flops > second


def test_a_cancelled_ask_stops_the_reading_that_nobody_else_waits_for():
    process = filtering(FILTERS["specpc"], chunk=16)
    one, two = process.add(ask_of(TEXT)), process.add(ask_of(TEXT))
    process.step()
    assert process.prompts.readings
    process.cancel(one)
    process.step()
    assert process.prompts.readings
    process.cancel(two)
    assert not process.prompts.readings
    assert process.step() == []
    process.drop_cache()
    assert process.prompts.pool.num_used == 0


def test_refused():
    for bad, message in (
        (lambda: GemFilter(keep=1.5), "whole number"), (lambda: GemFilter(kernel=4), "odd"), (lambda: SpecPC(window=0), "window"),
        (lambda: filtering(GemFilter(layer=3)), "layer=3"), (lambda: filtering(SpecPC(start=3)), "start=3"),
        (lambda: filtering(SpecPC(weights="int4")), "opens no other model"),
    ):  # fmt: skip
        with pytest.raises(BadField, match=message):
            bad()
    with pytest.raises(PromptTooLong, match="reads it for gemfilter"):
        filtering(FILTERS["gemfilter"]).add(ask_of("a" * 600))


def test_filters_by_name():
    assert prompt_filter("gemfilter:0.25") == GemFilter(keep=0.25)
    assert prompt_filter("specpc:512,model=smollm2-135m,weights=int4,window=8").reader.weights == "int4"
    for spec, error in (("gemfiltre", UnknownName), ("gemfilter:0", BadField), ("specpc:windw=3", UnknownName)):
        with pytest.raises(error):
            prompt_filter(spec)
