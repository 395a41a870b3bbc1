"""Retaining heads (accelerate/cache/retaining_heads) fitted to what later tokens of a text really attended to. The model stays as it is.

What a head must say of a token is the log of the most attention that any of the text's later, asking tokens gives to its key: those of a
question and its answer, which no head sees. One text is one step; splits are by text, and what is measured was not trained on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.cache.retaining_heads import RetainingHeads, features
from ponder.core.errors import BadField

LEAST_TEXTS = 10
LEAST_LOG = -16.0  # weights below exp of it count as this
MEASURED = 0.2  # share of the texts that only measure
KEPT = 0.2  # share of keys at which mass is measured


class Layer(Protocol):
    """What engine/watch shows of a layer: queries [T, H, E], keys and values [T, K, E], and scores of rows."""

    layer: int
    plain_q_THE: Tensor
    plain_k_TKE: Tensor
    v_TKE: Tensor

    def scores(self, start: int, stop: int) -> Tensor: ...


Watch = Callable[[Tensor, Callable[[Layer], None]], object]  # (tokens, what is called with each layer) -> ignored


@dataclass(frozen=True)
class Text:
    """tokens[:first_asking] are a context, the others ask about it and answer."""

    tokens: tuple[int, ...]
    first_asking: int


@dataclass(frozen=True, kw_only=True)
class RetainRecipe:
    """How retaining heads are fitted. Raises BadField."""

    width: int = 32  # hidden units
    epochs: int = 2
    rate: float = 2e-3  # of AdamW
    smooth: float = 0.0025  # weight of neighbours' differences
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.epochs) < 1 or not self.rate > 0 or not self.smooth >= 0:
            raise BadField(f"{self}: width and epochs at least 1, rate above 0, smooth at least 0")


@dataclass(frozen=True)
class Lesson:
    """Of one text: features [L, T, F] of its context, what heads must say of it [L, T, K], and the asking rows' mean attention [L, T, K]."""

    features: Tensor
    wanted: Tensor
    mass: Tensor


def lesson_of(text: Text, watch: Watch) -> Lesson:
    """Raises BadField for a text without a context or without tokens that ask."""
    num, stop = text.first_asking, len(text.tokens)
    if not 0 < num < stop:
        raise BadField(f"first_asking={num} of {stop} tokens: a text needs tokens before it and from it on")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(layer: Layer) -> None:
        log_KGRN = layer.scores(num, stop).log_softmax(-1)[..., :num]
        most_NK = log_KGRN.amax((1, 2)).clamp(min=LEAST_LOG).T
        read = features(layer.plain_q_THE[:num], layer.plain_k_TKE[:num], layer.v_TKE[:num])
        parts.append((read, most_NK, log_KGRN.exp().mean((1, 2)).T))

    with torch.inference_mode():
        watch(torch.tensor(text.tokens), see)
    # copies: what was computed in inference mode takes no part in a gradient
    return Lesson(*(torch.stack(found).clone() for found in zip(*parts, strict=True)))


def fit_retaining_heads(
    texts: Sequence[Text], watch: Watch, *, model_id: str, recipe: RetainRecipe | None = None, on_text: Callable[[], None] = lambda: None
) -> RetainingHeads:  # fmt: skip
    """Heads fitted on 80 % of the texts and measured on the others. Raises BadField for fewer than LEAST_TEXTS texts."""
    recipe, start = recipe or RetainRecipe(), time.process_time()
    if len(texts) < LEAST_TEXTS:
        raise BadField(f"{len(texts)} texts: at least {LEAST_TEXTS}, so that some can be held out; name more prompts")
    draws = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(texts), generator=draws).tolist()
    num_held = max(1, int(MEASURED * len(texts)))
    held, learned = order[:num_held], order[num_held:]
    heads: RetainingHeads | None = None
    with torch.inference_mode(False), torch.enable_grad():
        for epoch in range(recipe.epochs):
            for at, i in enumerate(learned):
                lesson = lesson_of(texts[i], watch)
                if heads is None:
                    heads = blank(lesson, model_id, recipe.width, draws)
                    weights = {name: getattr(heads, name).requires_grad_() for name in ("w_in", "b_in", "w_out", "b_out")}
                    optimiser = torch.optim.AdamW(weights.values(), lr=recipe.rate, weight_decay=0.0)
                part = (epoch * len(learned) + at) / (recipe.epochs * len(learned))
                optimiser.param_groups[0]["lr"] = recipe.rate * min(1.0, 10 * part + 0.1, 1.05 - part)
                optimiser.zero_grad()
                loss_of(heads, lesson, recipe.smooth).backward()
                optimiser.step()
                on_text()
    assert heads is not None
    done = {name: tensor.detach() for name, tensor in weights.items()}
    facts: dict[str, object] = {"num_texts": len(learned), "epochs": recipe.epochs, "cpu_seconds": round(time.process_time() - start, 1)}
    found = replace(heads, facts=facts, **done)
    return replace(found, facts=facts | measured(found, [lesson_of(texts[i], watch) for i in held]))


def blank(lesson: Lesson, model_id: str, width: int, draws: torch.Generator) -> RetainingHeads:
    """Heads that say of every token what is wanted on average of the first text, and read features as that text has them."""
    layers, _, num = lesson.features.shape
    spread = lesson.features.std(1).clamp(min=1e-3)
    return RetainingHeads(
        model_id=model_id, mean=lesson.features.mean(1), scale=spread, w_in=torch.randn(layers, num, width, generator=draws) / num**0.5,
        b_in=torch.zeros(layers, width), w_out=torch.zeros(layers, width, lesson.wanted.shape[2]), b_out=lesson.wanted.mean(1), facts={},
    )  # fmt: skip


def readings(heads: RetainingHeads, features_LTF: Tensor) -> Tensor:
    """[L, T, K] of all layers at once, as heads read them up to rounding."""
    z = (features_LTF - heads.mean[:, None]) / heads.scale[:, None]
    return (z @ heads.w_in + heads.b_in[:, None]).relu() @ heads.w_out + heads.b_out[:, None]


def loss_of(heads: RetainingHeads, lesson: Lesson, smooth: float) -> Tensor:
    """Smooth L1 of what is wanted, and of neighbours' differences."""
    said = readings(heads, lesson.features)
    return F.smooth_l1_loss(said, lesson.wanted) + smooth * said.diff(dim=1).square().mean()


def measured(heads: RetainingHeads, lessons: Sequence[Lesson]) -> dict[str, float]:
    """On unseen texts, the share of the asking rows' attention to the context that goes to a fifth of its keys: those that heads choose,
    those that are best, and the last ones."""
    totals = {"mass": 0.0, "mass_best": 0.0, "mass_latest": 0.0}
    with torch.no_grad():
        for lesson in lessons:
            num = max(1, int(KEPT * lesson.mass.shape[1]))
            all_of_it = lesson.mass.sum(1)
            latest = torch.arange(lesson.mass.shape[1], dtype=torch.float32)[None, :, None].expand_as(lesson.mass)
            for name, scores in (("mass", readings(heads, lesson.features)), ("mass_best", lesson.mass), ("mass_latest", latest)):
                found = lesson.mass.gather(1, scores.topk(num, 1).indices).sum(1) / all_of_it
                totals[name] += float(found.mean()) / len(lessons)
    return {name: round(value, 4) for name, value in totals.items()}
