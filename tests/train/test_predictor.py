"""Training a key predictor on a tiny model: closed form finds maps that are there, training comes closer to the model, and the engine runs what
training saw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.tiny_models import ByteTokenizer, tiny, tiny_decoder
from ponder.accelerate.layers.kv_prediction import KVPrediction
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Float32
from ponder.catalogue import accelerated
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Prefix, Prompt, Score
from ponder.core.errors import BadField, Unsupported
from ponder.core.predictor import save_predictor
from ponder.engine.passes import with_predictor
from ponder.engine.process import LocalProcess
from ponder.engine.settings import Settings
from ponder.models.decoder import load
from ponder.testing.run import answer_turn
from ponder.train.predictor import PredictorRecipe, distance, fit_maps, fit_predictor, head, loss_of, measured, passed, supplied_by

CHECKPOINT = tiny("qwen2")[0]
DECODER = load(CHECKPOINT, Float32(), None, torch.float32)
RECIPE = PredictorRecipe(length=24, batch=4, max_steps=60, rate=5e-3)


def texts_of(num: int, seed: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(97, 117, (num, 24), generator=draws).tolist()


def test_closed_form_and_gradients_come_closer_to_the_model():
    begun = KVPrediction(share=0.67, rank=4).of(CHECKPOINT)
    mapped = fit_maps(DECODER, begun, texts_of(60, 0))
    trained = fit_predictor(DECODER, begun, texts_of(60, 0), RECIPE)
    found = [measured(DECODER, predictor, texts_of(16, 1), RECIPE) for predictor in (begun, mapped, trained)]
    assert found[1]["kl"] < 0.5 * found[0]["kl"] < found[0]["kl"] < 0.5 * found[0]["blind_kl"]
    assert found[2]["kl"] < 0.7 * found[0]["kl"]
    assert found[2]["keys"] < found[0]["keys"]
    assert not any(torch.equal(trained.tensors[name], x) for name, x in begun.tensors.items())
    assert trained.facts["num_tokens"] == 60 * 4 * 24
    # maps of a neighbour come no closer: the measure has something to find
    shifted = mapped.with_tensors(mapped.tensors | {name: mapped.tensors[name].roll(1, 0) for name in ("k", "v", "k_bias", "v_bias")})
    assert measured(DECODER, shifted, texts_of(16, 1), RECIPE)["kl"] > 2 * found[1]["kl"]


def test_closed_form_finds_the_source_and_the_maps_that_are_there():
    """A model whose third layer has the keys of its first, turned: what is found makes them, from the first; the untouched maps do not."""
    turn = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
    tokens = torch.tensor(texts_of(8, 2))

    class Linked(type(DECODER.layers[2].qkv)):
        def apply(self, x):
            q, _, v = super().apply(x).split([96, 32, 32], -1)
            keys = passed(DECODER, tokens)[1][0][0] @ turn
            return torch.cat([q, keys - DECODER.layers[2].qkv_bias[96:128], v], -1)

    decoder = replace(DECODER, layers=(*DECODER.layers[:2], replace(DECODER.layers[2], qkv=Linked(DECODER.layers[2].qkv.weight))))
    begun = KVPrediction(share=0.67, rank=0).of(CHECKPOINT)
    found = fit_maps(decoder, begun, tokens.tolist(), replace(RECIPE, batch=8), ridge=1e-9)
    assert (begun.sources, found.sources) == ((0, 1, 1), (0, 1, 0))
    assert all(torch.equal(found.k[layer], begun.k[layer]) for layer in (0, 1))  # the reader has these keys itself
    wanted = passed(decoder, tokens)[1][2][0]
    error, before = ((supplied_by(decoder, p, tokens)[2][0] - wanted).norm() / wanted.norm() for p in (found, begun))
    assert error < 1e-2 < 0.5 < before


def test_the_model_as_its_own_reader_has_nothing_to_learn():
    predictor, tokens = KVPrediction(share=1.0, rank=2).of(CHECKPOINT), torch.tensor(texts_of(2, 3))
    assert float(loss_of(DECODER, predictor, tokens, num_prompt=12, recipe=RECIPE)) < 1e-5
    found = measured(DECODER, predictor, texts_of(4, 3), RECIPE)
    assert found["agreement"] == found["first_agreement"] == 1.0
    assert found["blind_kl"] > 0.01
    assert float(distance(supplied_by(DECODER, predictor, tokens), passed(DECODER, tokens)[1])) < 1e-6


def test_the_engine_runs_what_training_saw():
    """The float32 engine against the trainer's own evaluation, written apart from it."""
    trained = fit_predictor(DECODER, KVPrediction(share=0.67, rank=4).of(CHECKPOINT), texts_of(8, 0), replace(RECIPE, max_steps=5))
    process = LocalProcess(with_predictor(DECODER, trained, CHECKPOINT, Float32()), ByteTokenizer(), Sarathi(), Settings(is_native=False))
    (ids,) = texts_of(1, 9)
    tokens = torch.tensor([ids])
    rows = passed(DECODER, tokens, supplied_by(DECODER, trained, tokens), 20)[0]
    log_p = head(DECODER, rows)[0].log_softmax(-1)
    wanted = sum(float(log_p[19 + i, token]) for i, token in enumerate(ids[20:]))
    prompt = Prompt(messages=(("raw", ""),), prefill=bytes(ids[:20]).decode(), max_tokens=9)
    process.rendered[(prompt.messages, prompt.prefill)] = ids[:20]
    (score,) = answer_turn([Score(prefix=Prefix(prompt), options=(bytes(ids[20:]).decode(),))], process)
    assert score.log_p[0] == pytest.approx(wanted, abs=1e-3)
    other = passed(DECODER, tokens, supplied_by(DECODER, trained, tokens), 19)[0]
    assert abs(sum(float(head(DECODER, other)[0].log_softmax(-1)[19 + i, t]) for i, t in enumerate(ids[20:])) - wanted) > 1e-3


def test_refused():
    predictor = KVPrediction(rank=2).of(CHECKPOINT)
    with pytest.raises(BadField, match="give more or longer ones"):
        fit_predictor(DECODER, predictor, texts_of(3, 0), RECIPE)
    with pytest.raises(Unsupported, match="float32"):
        fit_predictor(tiny_decoder("qwen2"), predictor, texts_of(8, 0), RECIPE)
    with pytest.raises(BadField, match="rate"):
        PredictorRecipe(rate=0.0)


def test_a_file_by_name(tmp_path: Path):
    predictor = KVPrediction().of(CHECKPOINT)
    save_predictor(predictor, tmp_path / "a")
    found = accelerated(Settings(), Accelerations(predictor=str(tmp_path / "a"))).predictor
    assert found is not None
    assert (found.layers, found.model_id) == (predictor.layers, "tiny")
    assert accelerated(Settings(), Accelerations(predictor=predictor)).predictor is predictor
