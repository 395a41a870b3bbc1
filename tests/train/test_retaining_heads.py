"""Retaining heads: they find what can be found in a token, and nothing where there is nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from engine.tiny_models import tiny_decoder
from ponder.core.errors import BadField
from ponder.engine.watch import watch
from ponder.train.retaining_heads import RetainRecipe, Text, fit_retaining_heads, lesson_of

E, H, K, NUM = 8, 4, 2, 60
RECIPE = RetainRecipe(width=8, epochs=4, rate=0.02)


@dataclass
class Made:
    """A layer in which a key is attended to as `liking` [K, T] says."""

    layer: int
    plain_q_THE: Tensor
    plain_k_TKE: Tensor
    v_TKE: Tensor
    liking: Tensor

    def scores(self, start: int, stop: int) -> Tensor:
        rows = self.liking[:, None, None, :stop].expand(K, H // K, stop - start, stop).clone()
        return rows.masked_fill(torch.arange(stop) > torch.arange(start, stop)[:, None], -torch.inf)


def made(tokens: Tensor, see: Callable[[Made], None], *, is_seen: bool) -> None:
    """Two layers; keys are liked whose value points one way (is_seen) or by chance."""
    draws = torch.Generator().manual_seed(int(tokens[0]))
    for layer in range(2):
        q, k, v = (torch.randn(len(tokens), heads, E, generator=draws) for heads in (H, K, K))
        chance = torch.randn(K, len(tokens), generator=draws)
        see(Made(layer, q, k, v, 3 * (v[..., layer].T if is_seen else chance)))


TEXTS = [Text((i, *range(NUM + 9)), NUM) for i in range(40)]


def test_heads_learn_what_is_attended_to():
    facts = fit_retaining_heads(TEXTS, partial(made, is_seen=True), model_id="toy", recipe=RECIPE).facts
    assert facts["mass"] > 0.95 * facts["mass_best"] > 0.5
    assert facts["mass_latest"] < 0.3


def test_heads_find_nothing_in_chance():
    facts = fit_retaining_heads(TEXTS, partial(made, is_seen=False), model_id="toy", recipe=RECIPE).facts
    assert facts["mass"] < 0.35 < facts["mass_best"]


def test_what_is_wanted_is_what_the_engine_attends_to():
    """Of the tiny model: the most attention of the asking rows, counted from the whole matrix; one row fewer is another number."""
    decoder, text = tiny_decoder("llama", is_exact=True), Text(tuple(range(60, 100)), 30)
    lesson = lesson_of(text, partial(watch, decoder))
    weights: list[Tensor] = []
    with torch.inference_mode():
        watch(decoder, torch.tensor(text.tokens), lambda seen: weights.append(seen.scores(0, 40).softmax(-1)))
    for layer, whole in enumerate(weights):
        most = whole[:, :, 30:, :30].amax((1, 2)).T.log()
        assert torch.allclose(lesson.wanted[layer], most.clamp(min=-16), atol=1e-4)
        assert torch.allclose(lesson.mass[layer], whole[:, :, 30:, :30].mean((1, 2)).T, atol=1e-6)
        assert not torch.allclose(lesson.wanted[layer], whole[:, :, 31:, :30].amax((1, 2)).T.log().clamp(min=-16), atol=1e-4)


def test_refused():
    with pytest.raises(BadField, match="at least 10"):
        fit_retaining_heads(TEXTS[:9], partial(made, is_seen=True), model_id="toy")
    with pytest.raises(BadField, match="first_asking=0"):
        lesson_of(Text((1, 2), 0), partial(made, is_seen=True))
    with pytest.raises(BadField, match="width"):
        RetainRecipe(width=0)
