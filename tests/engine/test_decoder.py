"""The decoder around its layers: rows kept apart, bodies that a format brings, what it says of itself. Families: tests/models/test_families.py."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.tiny_models import END, VOCAB, StateCheckpoint, tiny, tiny_process
from models.plain_attend import PlainAttend
from models.tiny_families import CASES, hf_model, save_folder
from models.tiny_families import VOCAB as SMALL_VOCAB
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.core.asks import GREEDY, Extend, Prefix, chat
from ponder.core.errors import Unsupported
from ponder.core.formats import LayerBody, LayerWeights, ModelConfig
from ponder.models.checkpoint import FileCheckpoint, open_checkpoint
from ponder.models.decoder import Decoder, PlainBody, kinds_of_rows, load
from ponder.testing.run import answer_turn

pytestmark = pytest.mark.filterwarnings("ignore")


def tokens_of(num: int, seed: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (num,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def whole(decoder: Decoder, tokens: Tensor) -> Tensor:
    plan = PlainAttend(decoder.config)
    positions = plan.add([None, *range(len(tokens) - 1)])
    return decoder.logits(decoder.forward(tokens, positions, plan.attend))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    root: Path = tmp_path_factory.mktemp("families")
    return cache(lambda name: open_checkpoint(save_folder(name, root / name)))


@dataclass
class TwoTexts:
    """An `attend` for flat tokens of several texts, each with a PlainAttend of its own."""

    plans: list[PlainAttend]
    sizes: list[int]

    def attend(self, layer: int, *qkv_TJE: Tensor) -> Tensor:
        parts = zip(*(x.split(self.sizes) for x in qkv_TJE), strict=True)
        return torch.cat([plan.attend(layer, *part) for plan, part in zip(self.plans, parts, strict=True)])


@pytest.mark.parametrize(("family", "is_tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)])
@torch.inference_mode()
def test_texts_of_a_step_are_kept_apart(family: str, is_tied: bool):
    checkpoint, hf = tiny(family, is_tied=is_tied)
    decoder = load(checkpoint, Float32(), None, torch.float32)
    texts = [tokens_of(20), tokens_of(90, 2), tokens_of(1, 3)]
    plans = [PlainAttend(decoder.config) for _ in texts]
    positions = torch.cat([plan.add([None, *range(len(text) - 1)]) for plan, text in zip(plans, texts, strict=True)])
    found = decoder.logits(decoder.forward(torch.cat(texts), positions, TwoTexts(plans, [len(t) for t in texts]).attend))
    for text, part in zip(texts, found.split([len(t) for t in texts]), strict=True):
        assert (part - hf(text[None]).logits[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_engine_says_what_transformers_says(name: str, tmp_path: Path):
    """Greedy tokens of a process, prompts both shorter and longer than the windows."""
    values = {"vocab_size": VOCAB, "eos_token_id": END, "bos_token_id": END + 1}
    hf = hf_model(name, **values)
    process = tiny_process(load(open_checkpoint(save_folder(name, tmp_path, **values)), Float32(), None, torch.float32))
    prompts = [chat("ab" * n, max_tokens=12) for n in (1, 2, 20)]
    answers = answer_turn([Extend(prefix=Prefix(p), seed=0, sampling=GREEDY) for p in prompts], process)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = process.tokenizer.render(prompt.messages)
        with torch.inference_mode():
            logits = hf(torch.tensor([ids + list(answer.prefix.tokens)]), use_cache=False).logits[0, len(ids) - 1 :]
        for row, token in zip(logits, answer.prefix.tokens, strict=False):
            assert row[token] >= row.max() - 1e-4
    assert sum(len(answer.prefix.tokens) for answer in answers) > 10


# ---- rows do not depend on each other, bit for bit


def rows_that_differ(body: LayerBody, config: ModelConfig) -> int:
    """Number of groups of rows whose results differ from those that the same rows have among 33."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(33, config.dim, generator=generator)
    out_TX = torch.randn(33, config.num_heads * config.head_dim, generator=generator).bfloat16()
    angle = torch.rand(33, 1, config.head_dim // 2, generator=generator)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)

    def results(rows: list[int]) -> list[Tensor]:
        return [*body.before(x_TD[rows], cos[rows], sin[rows]), body.after(x_TD[rows].clone(), out_TX[rows])]

    all_rows = results(list(range(33)))
    groups = ([0], [32], [3, 4], [5, 31, 2], list(range(16)), list(range(7, 24)))
    return sum(not all(torch.equal(some, every[rows]) for some, every in zip(results(rows), all_rows, strict=True)) for rows in groups)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_rows_do_not_depend_on_each_other(opened, name: str):
    decoder = load(opened(name), Bf16(), Bf16Head())
    for body in decoder.bodies:
        assert rows_that_differ(body, decoder.config) == 0


@dataclass(frozen=True)
class Leaky(PlainBody):
    """Wrong: each row takes a little of the largest."""

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        return super().after(x_TD + 1e-3 * x_TD.amax(0), out_TX)


@torch.inference_mode()
def test_the_law_of_rows_has_teeth(opened):
    decoder = load(opened("llama2"), Bf16(), Bf16Head())
    assert rows_that_differ(Leaky(decoder.layers[0], decoder.config, decoder.dtype), decoder.config) > 0


# ---- bodies that a format brings


@dataclass(frozen=True)
class Doubled(PlainBody):
    """Adds twice what the plain body adds, so that its use shows."""

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        before = x_TD.clone()
        return before + 2 * (super().after(x_TD, out_TX) - before)


@dataclass(frozen=True)
class Fusing(Float32):
    """Fuses layers that have no unusual setting."""

    def fuse(self, layer: LayerWeights, config: ModelConfig) -> LayerBody | None:
        return None if config.unusual else Doubled(layer, config, torch.float32)


def test_a_format_may_bring_the_body(opened):
    checkpoint, tokens = opened("llama2"), tokens_of(9, vocab=SMALL_VOCAB)
    plain, fused = (load(checkpoint, weights, Float32(), torch.float32) for weights in (Float32(), Fusing()))
    assert {type(body) for body in plain.bodies} == {PlainBody}
    assert {type(body) for body in fused.bodies} == {Doubled}
    assert (whole(plain, tokens) - whole(fused, tokens)).abs().max() > 0.01


def test_a_format_may_decline(opened):
    decoder = load(opened("gemma3"), Fusing(), Float32(), torch.float32)
    assert {type(body) for body in decoder.bodies} == {PlainBody}


# ---- what a decoder says of itself


def test_model_ids_tell_what_changes_results(opened):
    checkpoint = opened("llama2")
    decoders = [
        load(checkpoint, Float32(), None, torch.float32),
        load(checkpoint, Bf16(), Bf16Head()),
        load(checkpoint, Bf16(), Float32()),
        load(checkpoint, Float32(), None, torch.bfloat16),
        load(opened("mistral"), Float32(), None, torch.float32),
    ]
    assert len({decoder.model_id for decoder in decoders}) == len(decoders)
    assert load(checkpoint, Float32(), None, torch.float32).model_id == decoders[0].model_id


@pytest.mark.parametrize("name", ["llama2", "qwen2moe-dense-layer", "mixtral"])
def test_nbytes_count_every_matrix_once(opened, name: str):
    checkpoint: FileCheckpoint = opened(name)
    entries = {n: e.shape for n, e in checkpoint.entries.items() if len(e.shape) == 2 and not n.endswith("router")}
    decoder = load(checkpoint, Float32(), None, torch.float32)
    assert decoder.nbytes == 4 * sum(rows * columns for rows, columns in entries.values())


def test_an_unknown_architecture_is_refused():
    checkpoint, _ = tiny("llama")
    with pytest.raises(Unsupported, match="'mamba': the decoder runs llama, qwen2"):
        load(StateCheckpoint(replace(checkpoint.config, arch="mamba"), checkpoint.state), Float32())


# ---- prompts may have a body of their own


@dataclass(frozen=True)
class TwoKinds(Doubled):
    """Adds twice the plain addition, and for tokens of prompts once."""

    @property
    def of_prompts(self) -> LayerBody:
        return PlainBody(self.layer, self.config, self.dtype)


def plain_attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
    return v_TKE.repeat_interleave(q_THE.shape[1] // v_TKE.shape[1], 1).flatten(1)


@torch.inference_mode()
def test_each_token_meets_the_body_of_its_kind(opened):
    plain = load(opened("llama2"), Float32(), Float32(), torch.float32)
    tokens, positions = tokens_of(9, vocab=SMALL_VOCAB), torch.arange(9)
    doubled = replace(plain, bodies=tuple(Doubled(layer, plain.config, torch.float32) for layer in plain.layers))
    mixed = replace(plain, bodies=tuple(TwoKinds(layer, plain.config, torch.float32) for layer in plain.layers))
    of_prompt, other = (decoder.forward(tokens, positions, plain_attend) for decoder in (plain, doubled))
    for prompts in ((), ((0, 9),), ((0, 4),), ((5, 9),), ((2, 3), (3, 5), (7, 8))):
        found = mixed.forward(tokens, positions, plain_attend, prompts)
        is_prompt = torch.tensor([any(start <= i < stop for start, stop in prompts) for i in range(9)])
        torch.testing.assert_close(found, torch.where(is_prompt[:, None], of_prompt, other))


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ((), [(0, 5, False)]),
        (((0, 5),), [(0, 5, True)]),
        (((0, 2), (2, 5)), [(0, 5, True)]),
        (((1, 2), (3, 4)), [(0, 1, False), (1, 2, True), (2, 3, False), (3, 4, True), (4, 5, False)]),
    ],
)
def test_runs_of_rows(prompts, wanted):
    assert kinds_of_rows(5, prompts) == wanted


def test_no_rows_are_no_runs():
    assert kinds_of_rows(0, ()) == []
