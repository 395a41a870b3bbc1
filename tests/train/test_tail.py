"""Training a tail on a tiny model: its own tensors alone move, and it comes closer to the model on text that it has not seen."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.tiny_models import tiny, tiny_decoder
from ponder.accelerate.layers.swiftkv import SwiftKV
from ponder.accelerate.weights.dense import Float32
from ponder.catalogue import accelerated
from ponder.core.accelerations import Accelerations
from ponder.core.errors import BadField, Unsupported
from ponder.core.tail import save_tail
from ponder.engine.settings import Settings
from ponder.models.decoder import load
from ponder.train.tail import TailRecipe, fit_tail, loss_of, measured

CHECKPOINT = tiny("qwen2")[0]
DECODER = load(CHECKPOINT, Float32(), None, torch.float32)
RECIPE = TailRecipe(length=24, batch=4, max_steps=80, rate=3e-3)


def texts_of(num: int, seed: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(97, 117, (num, 40), generator=draws).tolist()


@pytest.mark.parametrize("share", [1, 2])
def test_a_trained_tail_is_closer_to_the_model(share: int):
    tail = SwiftKV(start=0.34, share=share).of(CHECKPOINT)
    weights = [matrix.weight.clone() for layer in DECODER.layers for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    trained = fit_tail(DECODER, tail, texts_of(40, 0), RECIPE)
    before, after = (measured(DECODER, t, texts_of(8, 1), RECIPE) for t in (tail, trained))
    assert after["kl"] < 0.7 * before["kl"]
    assert not any(torch.equal(trained.tensors[name], x) for name, x in tail.tensors.items())
    assert all(map(torch.equal, weights, [m.weight for layer in DECODER.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down)]))
    assert trained.facts["num_tokens"] == 80 * 4 * 24
    # what is trained without looking at the model does not come closer: the measure above has something to find
    blind = tail.with_tensors({name: x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) for name, x in tail.tensors.items()})
    assert measured(DECODER, blind, texts_of(8, 1), RECIPE)["kl"] > 0.7 * before["kl"]


def test_a_tail_of_the_last_layer_says_what_the_model_says():
    """Untrained, it has nothing to learn: no divergence, no distance."""
    tail, tokens = SwiftKV(start=0.67).of(CHECKPOINT), torch.tensor(texts_of(2, 3))
    assert float(loss_of(DECODER, tail, tokens, replace(RECIPE, states=1.0))) < 1e-6
    assert measured(DECODER, tail, texts_of(2, 3), RECIPE)["agreement"] == 1.0
    early = SwiftKV(start=0.34).of(CHECKPOINT)
    assert float(loss_of(DECODER, early, tokens, replace(RECIPE, states=1.0))) > float(loss_of(DECODER, early, tokens, RECIPE)) > 1e-3


def test_refused():
    tail = SwiftKV().of(CHECKPOINT)
    with pytest.raises(BadField, match="give more or longer ones"):
        fit_tail(DECODER, tail, texts_of(3, 0), RECIPE)
    with pytest.raises(Unsupported, match="float32"):
        fit_tail(tiny_decoder("qwen2"), tail, texts_of(8, 0), RECIPE)
    with pytest.raises(BadField, match="rate"):
        TailRecipe(rate=0.0)


def test_a_file_by_name(tmp_path: Path):
    tail = SwiftKV().of(CHECKPOINT)
    save_tail(tail, tmp_path / "a.tail")
    found = accelerated(Settings(), Accelerations(tail=str(tmp_path / "a.tail"))).tail
    assert found is not None
    assert (found.start, found.model_id) == (tail.start, "tiny")
    assert accelerated(Settings(), Accelerations(tail=tail)).tail is tail
