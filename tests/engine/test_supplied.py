"""A model whose prompts' keys are supplied by a smaller reader: with the identity it is plain decoding bit for bit; else the engine's answers are
those of the model behind the predicted keys, evaluated whole and slowly. Mutants: layers shifted by one, keys that were not rotated."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.all_asks import LONG, asks_of, bares, process_of
from engine.tiny_models import tiny
from ponder import catalogue
from ponder.accelerate.layers.kv_prediction import KVPrediction
from ponder.accelerate.layers.swiftkv import SwiftKV
from ponder.accelerate.weights.dense import Bf16, Bf16Head
from ponder.core.asks import Extend, Prefix, Prompt, Score, chat
from ponder.core.errors import BadField
from ponder.core.predictor import Predictor, load_predictor, save_predictor
from ponder.engine.attend import Attention, Span
from ponder.engine.open import check_together
from ponder.engine.pages import INT8, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.passes import SuppliedPasses, with_predictor, write
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder, after, kinds_of_rows, load, rms_norm, rotate
from ponder.testing import laws_process
from ponder.testing.run import answer_turn

FAMILIES = ("llama", "qwen2")


def predictor_of(family: str, *, share: float = 0.67, pick: str = "first", rank: int = 4, noise: float = 0.1) -> Predictor:
    """A predictor as if trained: what it begins with, moved."""
    predictor = KVPrediction(share=share, pick=pick, rank=rank).of(tiny(family)[0])
    draws = torch.Generator().manual_seed(5)
    return predictor.with_tensors({name: x + noise * torch.randn(x.shape, generator=draws) for name, x in predictor.tensors.items()})


def identity(family: str) -> Predictor:
    return KVPrediction(share=1.0, rank=0).of(tiny(family)[0])


def decoder_of(family: str, predictor: Predictor | None) -> Decoder:
    checkpoint = tiny(family)[0]
    decoder = load(checkpoint, Bf16(), Bf16Head())
    return decoder if predictor is None else with_predictor(decoder, predictor, checkpoint, Bf16())


# the identity, and wrong readers that it must find fault with


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"chunk": 33, "max_rows": 3}, {"is_native": False}])
def test_with_the_model_itself_as_its_reader_it_is_plain_decoding(family: str, settings: dict[str, object]):
    asks = [*asks_of(chat(LONG, max_tokens=30)), asks_of(chat(LONG[:70] + "q", max_tokens=30))[0]]
    plain, supplied = process_of(decoder_of(family, None), **settings), process_of(decoder_of(family, identity(family)), **settings)
    assert bares(supplied, asks) == bares(plain, asks)
    assert supplied.model_id != plain.model_id


class Mutant(LocalProcess):
    """Its keys of prompts are changed by `change` before anybody meets them."""

    change: Callable

    @property
    def passes(self):
        change = type(self).change

        class Changed(SuppliedPasses):
            def _supplied(self, tokens, spans):
                cos, sin = self.decoder.tables[0].at(self.attention.plan(spans).positions)
                pairs = change(super()._supplied(tokens, spans), cos, sin)
                write(self.attention, pairs, spans, self.attention.plan(spans).positions)
                return pairs

        return Changed(self.decoder, self.attention, self.decoder.reader)


class Shifted(Mutant):
    """Every layer has its neighbour's keys."""

    def change(pairs, cos, sin):
        return {layer: pairs[(layer + 1) % len(pairs)] for layer in pairs}


class Unrotated(Mutant):
    """Keys as they are at position 0."""

    def change(pairs, cos, sin):
        return {layer: (rotate(k, cos, -sin).to(k.dtype), v) for layer, (k, v) in pairs.items()}


class Behind(Mutant):
    """Keys of the token before."""

    def change(pairs, cos, sin):
        return {layer: (k.roll(1, 0), v) for layer, (k, v) in pairs.items()}


class Unchanged(Mutant):
    def change(pairs, cos, sin):
        return pairs


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_layers_phases_and_places_are_found(family: str):
    asks = asks_of(chat(LONG, max_tokens=30))
    plain, decoder = bares(process_of(decoder_of(family, None)), asks), decoder_of(family, identity(family))
    assert bares(process_of(decoder, Unchanged), asks) == plain
    for wrong in (Shifted, Unrotated, Behind):
        assert bares(process_of(decoder, wrong), asks) != plain, wrong.__name__


# another reader: the model behind predicted keys


def slow_pairs(decoder: Decoder, predictor: Predictor, family: str, ids: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys (rotated) and values of all layers of a prompt in float64, from the predictor's tensors and the checkpoint's, matrix by matrix."""
    config, state = decoder.config, tiny(family)[0]
    num, width = len(ids), config.num_kv_heads * config.head_dim
    x = decoder.embedded(torch.tensor(ids)).double()
    angles = torch.outer(torch.arange(num).double(), 1e4 ** -(torch.arange(config.head_dim // 2).double() / (config.head_dim // 2)))
    cos, sin = (part[:, None] for part in (angles.cos(), angles.sin()))

    def normed(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * state.tensor(name).dense().double()

    def turned(x: Tensor) -> Tensor:
        a, b = x.unflatten(1, (-1, config.head_dim)).chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def whole(index: int, at: int, name: str, parts: tuple[str, ...]) -> Tensor:
        extra = predictor.correction(at).get(name, 0.0)
        return torch.cat([state.tensor(f"layers.{index}.{part}").dense() for part in parts]).double() + extra

    found: list[tuple[Tensor, Tensor]] = []
    for at, index in enumerate(predictor.layers):
        qkv = normed(x, f"layers.{index}.attn_norm") @ whole(index, at, "qkv", ("q", "k", "v")).T
        if config.is_qkv_biased:
            qkv = qkv + torch.cat([state.tensor(f"layers.{index}.{part}.bias").dense().flatten() for part in "qkv"]).double()
        q, k, v = qkv.split([qkv.shape[1] - 2 * width, width, width], 1)
        found.append((k, v))
        keys, values = turned(k), v.unflatten(1, (-1, config.head_dim))
        group = config.num_heads // config.num_kv_heads
        scores = torch.einsum("ihe,jhe->hij", turned(q), keys.repeat_interleave(group, 1)) / config.head_dim**0.5
        seen = torch.ones(num, num, dtype=torch.bool).tril()
        out = torch.einsum("hij,jhe->ihe", scores.masked_fill(~seen, -torch.inf).softmax(-1), values.repeat_interleave(group, 1))
        x = x + out.flatten(1) @ whole(index, at, "o", ("o",)).T
        gate, up = (normed(x, f"layers.{index}.ffn_norm") @ whole(index, at, "gate_up", ("gate", "up")).T).chunk(2, 1)
        x = x + (torch.nn.functional.silu(gate) * up) @ whole(index, at, "down", ("down",)).T
    pairs = []
    for layer, source in enumerate(predictor.sources):
        k, v = (
            found[source][i] @ getattr(predictor, name)[layer].double().T + getattr(predictor, f"{name}_bias")[layer] for i, name in enumerate("kv")
        )
        pairs.append((turned(k), v.unflatten(1, (-1, config.head_dim))))
    return pairs


def slow_hidden(decoder: Decoder, ids: list[int], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows of the model over all tokens at once, of which the first len(pairs[0][0]) have those keys."""
    config, num, num_prompt = decoder.config, len(ids), len(pairs[0][0])
    pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), decoder.dtype, 1 << 24)
    pages = Pages(pool)
    assert pages.reserve(num)
    plan = Attention(config, pool).plan([Span(pages, 0, num, num_prompt)])
    runs, x_TD = kinds_of_rows(num, plan.prompts), decoder.embedded(torch.tensor(ids))
    for layer, body in enumerate(decoder.bodies):
        q, k, v = body.before(x_TD, *decoder.tables[0].at(plan.positions))
        k, v = (torch.cat([theirs.to(own.dtype), own[num_prompt:]]) for own, theirs in zip((k, v), pairs[layer], strict=True))
        x_TD = after(body, runs, x_TD, plan.attend(layer, q, k, v))
    return rms_norm(x_TD, decoder.norm, config.norm_eps, decoder.dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pick", ["first", "spread"])
def test_the_engine_says_what_the_model_says_behind_predicted_keys(family: str, pick: str):
    predictor = predictor_of(family, pick=pick, noise=0.02)
    decoder, prompt = decoder_of(family, predictor), chat(LONG, max_tokens=30)
    process = process_of(decoder, chunk=30)
    ids, word = process.tokenizer.render(prompt.messages), list(b"words")
    (score,) = answer_turn([Score(prefix=Prefix(prompt), options=("words",))], process)
    wanted = slow_pairs(decoder, predictor, family, ids)
    rows = slow_hidden(decoder, ids + word[:-1], wanted)[len(ids) - 1 :]
    slowly = sum(process._log_p(rows, torch.tensor(word)))
    plain = answer_turn([Score(prefix=Prefix(prompt), options=("words",))], process_of(decoder_of(family, None)))[0].log_p[0]
    assert abs(score.log_p[0] - slowly) < 0.15 < 0.5 < abs(plain - slowly)


@pytest.mark.parametrize("settings", [{"chunk": 33, "max_rows": 3}, {"is_native": False}, {"chunk": 20, "kv_bytes": 300_000}])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_alone_and_in_crowds_chunks_caches_and_forks(family: str, settings: dict[str, object]):
    """And where prompts begin alike: a place's keys do not depend on whose last token stood there."""
    decoder = decoder_of(family, predictor_of(family))
    asks = [*asks_of(chat(LONG, max_tokens=30)), asks_of(chat(LONG[:70] + "q", max_tokens=30))[0]]
    alike = {name: value for name, value in settings.items() if name == "is_native"}
    alone = [bares(process_of(decoder, **alike), [ask])[0] for ask in asks]
    process = process_of(decoder, **settings)
    assert bares(process, asks) == alone
    assert bares(process, asks[::-1])[::-1] == alone
    forked = bares(process, [Extend(prefix=found[0], seed=9, max_tokens=3) for found in alone[:2]])
    assert forked == [bares(process_of(decoder, **alike), [Extend(prefix=found[0], seed=9, max_tokens=3)])[0] for found in alone[:2]]


def raw(text: str) -> Prompt:
    return Prompt(messages=(("raw", ""),), prefill=text, max_tokens=30)


class Computed(LocalProcess):
    """Mutant: a prompt's last token leaves the model's own keys behind, in place of the supplied ones."""

    @property
    def passes(self):
        class Own(SuppliedPasses):
            def _through(self, tokens, spans, supplied, given):
                return super()._through(tokens, spans, {layer: (k[:0], v[:0]) for layer, (k, v) in supplied.items()}, given[:0])

        return Own(self.decoder, self.attention, self.decoder.reader)


@pytest.mark.parametrize("kind", [LocalProcess, Computed])
def test_a_longer_prompt_finds_no_computed_keys_where_a_shorter_one_ended(kind: type[LocalProcess]):
    decoder = decoder_of("llama", predictor_of("llama"))
    short, longer = (Score(prefix=Prefix(raw(text)), options=("word",)) for text in (LONG[:40], LONG[:60]))
    alone, after_another = process_of(decoder, kind), process_of(decoder, kind)
    bares(after_another, [short])
    found = bares(after_another, [longer])
    assert after_another.totals.reused_tokens >= 40
    assert (found == bares(alone, [longer])) == (kind is LocalProcess)


def test_text_of_an_answer_in_a_prompt_is_not_taken_for_the_answer():
    """The same tokens, once as an answer (computed keys), once as part of a prompt (predicted ones)."""
    decoder = decoder_of("llama", predictor_of("llama"))
    said, part = Prefix(raw(LONG[:40]), tokens=tuple(LONG[40:60].encode()), text=LONG[40:60]), Prefix(raw(LONG[:60]))
    asks = [Score(prefix=prefix, options=("word",)) for prefix in (said, part)]
    alone = [bares(process_of(decoder), [ask])[0] for ask in asks]
    assert alone[0] != alone[1]
    process = process_of(decoder)
    assert [bares(process, [ask])[0] for ask in asks] == alone
    assert [bares(process, [ask])[0] for ask in asks] == alone


@pytest.mark.parametrize("law", [*laws_process.LAWS], ids=lambda law: law.__name__)
def test_laws_of_a_process(law):
    decoder = decoder_of("qwen2", predictor_of("qwen2"))
    law(lambda: process_of(decoder), chat("Say something.", max_tokens=24), 0.0)


def test_the_ledger_counts_what_was_computed():
    """Of a prompt of n tokens: the reader's layers and the maps for each, the model's for its last; counted by hand."""
    predictor = predictor_of("llama", share=0.67)
    decoder, prompt = decoder_of("llama", predictor), chat(LONG, max_tokens=30)
    config, n, num = decoder.config, len(LONG) + 1, 2
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projected, behind, per_key = 2.0 * config.dim * (heads + 2 * keys), 2.0 * config.dim * (heads + 3 * config.ffn_dim), 4.0 * heads
    read = n * num * projected + (num - 1) * (n * behind + per_key * n * (n + 1) / 2) + n * 6 * 2.0 * keys * keys
    wanted = read + config.num_layers * (projected + behind + per_key * n) + 2.0 * n * config.dim * config.vocab_size
    for chunk in (512, 40):
        process = process_of(decoder, chunk=chunk)
        (answer,) = answer_turn([Extend(prefix=Prefix(prompt), seed=0, max_tokens=1)], process)
        assert answer.cost.flops == pytest.approx(wanted, rel=1e-12)
        assert process.totals.flops == answer.cost.flops
    assert process.pool.num_layers == config.num_layers + num


# files and refusals


def test_a_file_of_a_predictor(tmp_path):
    predictor = predictor_of("qwen2")
    predictor = predictor.with_tensors({name: x.bfloat16() for name, x in predictor.tensors.items()})
    save_predictor(predictor, tmp_path / "a")
    found = load_predictor(tmp_path / "a")
    assert (found.name, found.layers, found.sources) == (predictor.name, predictor.layers, predictor.sources)
    assert found.name != predictor.with_tensors(predictor.tensors | {"k": predictor.k + 1}).name
    (tmp_path / "b").write_bytes(b"nothing")
    with pytest.raises(BadField, match="no safetensors"):
        load_predictor(tmp_path / "b")
    save_predictor(predictor.with_tensors(predictor.tensors | {"v": predictor.v * torch.nan}), tmp_path / "c")
    with pytest.raises(BadField, match="damaged"):
        load_predictor(tmp_path / "c")


def test_refused():
    predictor, checkpoint = predictor_of("llama"), tiny("llama")[0]
    decoder = decoder_of("llama", None)
    for wrong, match in (
        (replace(predictor, model_id="another"), "train one on this model"), (replace(predictor, sources=(0, 1)), "this model wants"),
        (replace(predictor, layers=(0, 3)), "this model wants"), (replace(predictor, k=predictor.k[:2]), "this model wants"),
        (replace(predictor, corrections={"o.in": predictor.corrections["o.in"]}), "this model wants"),
    ):  # fmt: skip
        with pytest.raises(BadField, match=match):
            with_predictor(decoder, wrong, checkpoint, Bf16())
    others = {
        "draft": {"speculation": catalogue.speculation("ngram")}, "cache": {"cache": catalogue.cache_policy("snapkv")},
        "attention": {"attend": catalogue.attention_plan("s2")}, "prompt": {"prompt": catalogue.prompt_filter("gemfilter")},
        "layer plan": {"layers": catalogue.layer_plan("lazyllm")}, "KV format": {"kv_format": INT8},
        "tail": {"tail": SwiftKV().of(checkpoint)},
    }  # fmt: skip
    for name, other in others.items():
        with pytest.raises(BadField, match=f"a key predictor with a {name}|layer plan"):
            check_together(Settings(predictor=predictor, **other))
    for bad in ({"share": 0.0}, {"pick": "none"}, {"rank": -1}):
        with pytest.raises(BadField, match="kv_prediction"):
            KVPrediction(**bad)
