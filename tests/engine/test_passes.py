"""A model with a tail: the engine's answers are those of the changed model evaluated whole and slowly, and of a prompt only rows that are asked for
pass through the tail. Mutants: keys of an earlier state, an off-by-one in what is asked for."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from engine.all_asks import LONG, asks_of, bares, process_of
from engine.tiny_models import ByteTokenizer, tiny
from ponder import catalogue
from ponder.accelerate.layers.swiftkv import SwiftKV
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.core.asks import GREEDY, Extend, Prefix, Prompt, Read, Score, chat
from ponder.core.errors import BadField
from ponder.core.tail import Tail, load_tail, save_tail
from ponder.engine.attend import Attention, Span
from ponder.engine.open import check_together
from ponder.engine.pages import INT8, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.passes import with_tail
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder, after, kinds_of_rows, load, rms_norm, rotate
from ponder.models.tail import PackedTail, Rows
from ponder.testing import laws_probe, laws_process
from ponder.testing.run import answer_turn
from ponder.train.layers import between, head
from ponder.train.tail import behind

SHAPES = [("llama", 1), ("qwen2", 2)]  # family, layers that share keys


def tail_of(family: str, *, share: int = 1, start: float = 0.34, noise: float = 0.1) -> Tail:
    """A tail as if trained: the model's own projections, moved."""
    tail = SwiftKV(start=start, share=share).of(tiny(family)[0])
    draws = torch.Generator().manual_seed(5)
    return tail.with_tensors({name: x + noise * torch.randn(x.shape, generator=draws) for name, x in tail.tensors.items()})


def decoder_of(family: str, tail: Tail | None) -> Decoder:
    decoder = load(tiny(family)[0], Bf16(), Bf16Head())
    return decoder if tail is None else with_tail(decoder, tail, Bf16())


class Shifted(LocalProcess):
    """Mutant: asks for rows from one place later on, or earlier."""

    by = 0

    def _forward(self, spans, tokens: list[int]) -> Tensor:
        return self.passes.run([replace(span, asked=span.asked + self.by) for span in spans], tokens)


class Whole(Shifted):
    """Every row through every layer."""

    by = -(1 << 30)


class Late(Shifted):
    by = 1


class Early(Shifted):
    by = -1


def slow_hidden(decoder: Decoder, tail: Tail, ids: list[int], num_prompt: int) -> Tensor:
    """All rows through all layers at once, every layer with keys and pages of its own, matrix by matrix from the tail's tensors."""
    config, num = decoder.config, len(ids)
    pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), decoder.dtype, 1 << 24)
    pages = Pages(pool)
    assert pages.reserve(num)
    plan = Attention(config, pool).plan([Span(pages, 0, num, num_prompt)])
    cos, sin = decoder.tables[0].at(plan.positions)
    x_TD = decoder.through(range(tail.start), decoder.embedded(torch.tensor(ids)), plan.positions, plan.attend, prompts=plan.prompts)
    entered = rms_norm(x_TD.clone(), tail.norm, config.norm_eps, decoder.dtype)

    def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = Bf16().pack((Rows(weight, "w"),)).apply(x)
        return (y if bias is None else y + bias.to(y)).view(num, -1, config.head_dim)

    for layer in range(tail.start, config.num_layers):
        i, g = layer - tail.start, (layer - tail.start) // tail.share
        biases = [None if b is None else b[at] for b, at in ((tail.q_bias, i), (tail.k_bias, g), (tail.v_bias, g))]
        read = rms_norm(x_TD, decoder.layers[layer].attn_norm, config.norm_eps, decoder.dtype)
        q, k = (rotate(heads(y, w, b), cos, sin).to(decoder.dtype) for y, w, b in ((read, tail.q[i], biases[0]), (entered, tail.k[g], biases[1])))
        out = plan.attend(layer, q, k, heads(entered, tail.v[g], biases[2]).contiguous())
        x_TD = after(decoder.bodies[layer], kinds_of_rows(num, plan.prompts), x_TD, out)
    return rms_norm(x_TD, decoder.norm, config.norm_eps, decoder.dtype)


@pytest.mark.parametrize(("family", "share"), SHAPES)
def test_the_engine_says_what_the_changed_model_says_slowly(family: str, share: int):
    """Bit for bit: greedy tokens of a long prompt in chunks, and the log-probabilities of a given continuation."""
    tail = tail_of(family, share=share)
    decoder, prompt = decoder_of(family, tail), chat(LONG, max_tokens=12)
    process = process_of(decoder, chunk=30)
    ids = process.tokenizer.render(prompt.messages)
    answer, score = answer_turn([Extend(prefix=Prefix(prompt), seed=0, sampling=GREEDY), Score(prefix=Prefix(prompt), options=("word",))], process)
    tokens = list(answer.prefix.tokens)
    assert len(tokens) == 12
    rows = slow_hidden(decoder, tail, ids + tokens[:-1], len(ids))[len(ids) - 1 :]
    assert decoder.logits(rows).argmax(-1).tolist() == tokens
    word = list(b"word")
    rows = slow_hidden(decoder, tail, ids + word[:-1], len(ids))[len(ids) - 1 :]
    assert score.log_p == (process._log_p(rows, torch.tensor(word)) and sum(process._log_p(rows, torch.tensor(word))),)
    plain = answer_turn([Score(prefix=Prefix(prompt), options=("word",))], process_of(decoder_of(family, None)))[0]
    assert abs(plain.log_p[0] - score.log_p[0]) > 0.1  # there is something to find


@pytest.mark.parametrize(("family", "share"), SHAPES)
@pytest.mark.parametrize("settings", [{"chunk": 33, "max_rows": 3}, {"is_native": False}, {"chunk": 20, "kv_bytes": 200_000}])
def test_rows_that_nobody_asks_for_change_nothing(family: str, share: int, settings: dict[str, object]):
    """Every kind of ask, alone in a process whose rows all pass through all layers, and in crowds, chunks, caches and forks of one that asks."""
    decoder = decoder_of(family, tail_of(family, share=share))
    asks = [*asks_of(chat(LONG, max_tokens=30)), asks_of(chat(LONG[:70] + "q", max_tokens=30))[0]]
    alike = {name: value for name, value in settings.items() if name == "is_native"}
    alone = [bares(process_of(decoder, Whole, **alike), [ask])[0] for ask in asks]
    process = process_of(decoder, **settings)
    assert bares(process, asks) == alone
    assert bares(process, asks[::-1])[::-1] == alone
    forked = bares(process, [Extend(prefix=found[0], seed=9, max_tokens=3) for found in alone[:2]])
    assert forked == [bares(process_of(decoder, Whole, **alike), [Extend(prefix=found[0], seed=9, max_tokens=3)])[0] for found in alone[:2]]


@pytest.mark.parametrize("law", [*laws_process.LAWS], ids=lambda law: law.__name__)
def test_laws_of_a_process(law):
    decoder = decoder_of("qwen2", tail_of("qwen2", share=2))
    law(lambda: process_of(decoder), chat("Say something.", max_tokens=24), 0.0)


def test_no_changed_layer_is_the_plain_model():
    for family, share in SHAPES:
        tail, asks = tail_of(family, share=share, start=1.0), asks_of(chat(LONG, max_tokens=9))
        assert tail.start == 3
        found, plain = process_of(decoder_of(family, tail)), process_of(decoder_of(family, None))
        assert bares(found, asks) == bares(plain, asks)
        assert found.model_id == plain.model_id


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_untrained_tail_of_the_last_layer_is_the_plain_model(family: str):
    """Its keys come from the state that they come from anyway: bit for bit, though most rows never meet the layer."""
    asks = asks_of(chat(LONG, max_tokens=9))
    tail = tail_of(family, start=0.67, noise=0.0)
    assert tail.start == 2
    plain = bares(process_of(decoder_of(family, None)), asks)
    assert bares(process_of(decoder_of(family, tail)), asks) == plain
    assert bares(process_of(early_keys(decoder_of(family, tail))), asks) != plain


@dataclass(frozen=True)
class Noted:
    """A layer's body that notes rows: how many, and those that came in last."""

    body: object
    index: int
    rows: dict[int, list[int]]
    seen: dict[int, Tensor] = field(default_factory=dict)

    @property
    def of_prompts(self) -> "Noted":
        return self

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor):
        return self.body.before(x_TD, cos, sin)

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        self.rows.setdefault(self.index, []).append(len(x_TD))
        self.seen[self.index] = x_TD.clone()
        return self.body.after(x_TD, out_TX)


def noted(decoder: Decoder) -> tuple[Decoder, dict[int, list[int]], dict[int, Tensor]]:
    rows, seen = {}, {}
    return replace(decoder, bodies=tuple(Noted(body, i, rows, seen) for i, body in enumerate(decoder.bodies))), rows, seen


def early_keys(decoder: Decoder) -> Decoder:
    """Mutant: the tail's keys come from the state that entered the layer before."""
    decoder, _, seen = noted(decoder)

    class EarlyTail(PackedTail):
        def keys_of(self, x_TD: Tensor, angles: tuple[Tensor, Tensor]):
            return super().keys_of(seen[self.start - 1], angles)

    assert decoder.tail is not None
    return replace(decoder, tail=EarlyTail(**vars(decoder.tail)))


def test_keys_of_an_earlier_state_would_be_seen():
    tail = tail_of("llama")
    decoder, prompt = decoder_of("llama", tail), chat(LONG, max_tokens=4)
    found = [answer_turn([Score(prefix=Prefix(prompt), options=("word",))], process_of(d))[0].log_p for d in (decoder, early_keys(decoder))]
    assert found[0] != found[1]


def test_rows_that_pass_through_the_tail_are_those_asked_for():
    """Of a prompt its last; of an answer all; of an option one for each token; of what is read, all from its first place."""
    plain, rows, _ = noted(decoder_of("llama", tail_of("llama")))
    prompt = chat(LONG, max_tokens=30)
    num = len(ByteTokenizer().render(prompt.messages))
    read = Read(prefix=Prefix(prompt, tokens=tuple(range(97, 109))), probe=laws_probe.Whole(), places=(3, 12))
    for ask, asked, given in (
        (Extend(prefix=Prefix(prompt), seed=0, max_tokens=1), 1, num),
        (Extend(prefix=Prefix(prompt), seed=0, max_tokens=6, sampling=GREEDY), 6, num + 5),
        (Score(prefix=Prefix(prompt), options=("word",)), 4, num + 3), (read, 10, num + 12),
    ):  # fmt: skip
        rows.clear()
        answer_turn([ask], process_of(plain, chunk=40))
        assert [sum(rows[layer]) for layer in range(3)] == [given, asked, asked]
        rows.clear()
        answer_turn([ask], process_of(plain, Early, chunk=40))
        assert sum(rows[1]) == asked + 1  # an off-by-one would be seen ...


def test_a_row_too_few_would_be_seen():
    """... on the other side too: what was asked for and not computed is no number."""
    decoder = decoder_of("llama", tail_of("llama"))
    ask = Score(prefix=Prefix(chat(LONG, max_tokens=30)), options=("word",))
    assert bares(process_of(decoder, Late), [ask]) != bares(process_of(decoder), [ask])


@pytest.mark.parametrize(("family", "share"), SHAPES)
def test_the_ledger_counts_what_was_computed(family: str, share: int):
    """(r + (L - r) / n) / L of what the layers cost but for keys, which all rows have: of a prompt of n tokens, counted by hand."""
    tail = tail_of(family, share=share)
    decoder, prompt = decoder_of(family, tail), chat(LONG, max_tokens=30)
    config, n, r, groups = decoder.config, len(LONG) + 1, tail.start, len(tail.k)
    num_layers, heads, keys = config.num_layers, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = 2.0 * (2 * config.dim * heads + 3 * config.dim * config.ffn_dim)
    per_key, pairs, head = 4.0 * heads, 2.0 * 2 * config.dim * keys, 2.0 * config.dim * config.vocab_size
    wanted = r * (n * layer + per_key * n * (n + 1) / 2) + (num_layers - r) * (layer + per_key * n) + (r + groups) * n * pairs + n * head
    for chunk in (512, 40):
        process = process_of(decoder, chunk=chunk)
        (answer,) = answer_turn([Extend(prefix=Prefix(prompt), seed=0, max_tokens=1)], process)
        assert answer.cost.flops == pytest.approx(wanted, rel=1e-12)
        assert process.totals.flops == answer.cost.flops
        assert answer.cost.prompt_tokens == n
    assert process.pool.num_layers == r + groups  # a group has one page


def test_packed_projections_are_those_that_training_saw():
    """The float32 engine against the trainer's own evaluation, written apart from it."""
    for family, share in SHAPES:
        tail, checkpoint = tail_of(family, share=share), tiny(family)[0]
        plain = load(checkpoint, Float32(), None, torch.float32)
        process = process_of(with_tail(plain, tail, Float32()), is_native=False)
        ids = list(LONG.encode())
        x = between(plain, plain.embedded(torch.tensor(ids))[None], range(tail.start))
        log_p = head(plain, behind(plain, x, tail))[0].log_softmax(-1)
        wanted = sum(float(log_p[len(LONG) - 5 + i, token]) for i, token in enumerate(ids[-4:]))
        prompt = Prompt(messages=(("raw", ""),), prefill=LONG[:-4], max_tokens=9)
        process.rendered[(prompt.messages, prompt.prefill)] = ids[:-4]
        (score,) = answer_turn([Score(prefix=Prefix(prompt), options=(LONG[-4:],))], process)
        assert score.log_p[0] == pytest.approx(wanted, abs=1e-3)


def test_a_file_of_a_tail(tmp_path):
    tail = tail_of("qwen2", share=2)
    tail = tail.with_tensors({name: x.bfloat16() for name, x in tail.tensors.items()})
    save_tail(tail, tmp_path / "a.tail")
    found = load_tail(tmp_path / "a.tail")
    assert (found.name, found.start, found.share) == (tail.name, tail.start, tail.share)
    assert found.name != tail.with_tensors({"norm": tail.norm + 1}).name
    (tmp_path / "b.tail").write_bytes(b"nothing")
    with pytest.raises(BadField, match="no safetensors"):
        load_tail(tmp_path / "b.tail")


def test_refused():
    tail = tail_of("llama")
    decoder = decoder_of("llama", None)
    with pytest.raises(BadField, match="train one on this model"):
        with_tail(decoder, replace(tail, model_id="another"), Bf16())
    with pytest.raises(BadField, match="this model wants"):
        with_tail(decoder, replace(tail, share=2), Bf16())
    others = {
        "draft": {"speculation": catalogue.speculation("ngram")},
        "cache": {"cache": catalogue.cache_policy("snapkv")},
        "attention": {"attend": catalogue.attention_plan("s2")},
        "prompt": {"prompt": catalogue.prompt_filter("gemfilter")},
        "layer plan": {"layers": catalogue.layer_plan("lazyllm")},
        "KV format": {"kv_format": INT8},
    }
    for name, other in others.items():
        with pytest.raises(BadField, match=f"a tail with a {name}"):
            check_together(Settings(tail=tail, **other))
    with pytest.raises(BadField, match="start must be above 0"):
        SwiftKV(start=0.0)
