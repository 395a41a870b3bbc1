"""A key predictor (core.predictor) taught to supply the keys that the model would have: maps in closed form, then all of it by gradients.

`fit_maps` leaves the reader as it is and finds, for each layer, the reader's layer and the maps that come closest to the layer's own keys
and values (ridge regression). `fit_predictor` goes on from there. Of a text whose beginning counts as the prompt it minimises the
divergence of what the model says behind predicted keys from what it says behind its own, and the distance of the keys themselves.

Shapes: B texts of T tokens each, D width, L layers, M of the reader, J = K * E, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import LayerWeights, Linear
from ponder.core.predictor import Predictor
from ponder.models.decoder import Decoder
from ponder.train.descent import check_texts, cut, step_down, steps
from ponder.train.layers import behind_layer, check_open, head, normed

Pair = tuple[Tensor, Tensor]  # keys before rotation and values, [B, T, J]


@dataclass(frozen=True, kw_only=True)
class PredictorRecipe:
    """How a predictor is trained. Raises BadField."""

    batch: int = 2  # texts of a step
    length: int = 256  # tokens of a text
    rate: float = 1e-3  # of AdamW at its highest; it falls to 0 along a cosine
    keys: float = 1.0  # weight of the keys' distance, as a share of their own size
    max_steps: int = 200
    max_seconds: float = 600.0  # by the clock
    is_half: bool = False  # products in bfloat16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.max_steps) < 1 or self.length < 4 or min(self.rate, self.max_seconds) <= 0 or self.keys < 0:
            raise BadField(f"{self}: batch and max_steps at least 1, length at least 4, rate and max_seconds above 0, keys at least 0")

    def products(self, decoder: Decoder) -> torch.autocast:
        """In which products of matrices are bfloat16, if it says so."""
        return torch.autocast(decoder.device.type, torch.bfloat16, enabled=self.is_half)


@dataclass(frozen=True)
class Corrected:
    """A matrix with a correction of low rank."""

    inner: Linear
    into: Tensor  # [R, in]
    out: Tensor  # [out, R]

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self.into.nbytes + self.out.nbytes

    def apply(self, x: Tensor) -> Tensor:
        return self.inner.apply(x) + F.linear(F.linear(x, self.into), self.out)


# the model, its reader and what is made of their keys, so that gradients pass


def projected(decoder: Decoder, layer: LayerWeights, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer, not rotated."""
    config = decoder.config
    width = config.num_kv_heads * config.head_dim
    qkv = layer.qkv.apply(normed(decoder, x_BTD, layer.attn_norm))
    qkv = qkv if layer.qkv_bias is None else qkv + layer.qkv_bias
    q, k, v = qkv.split([config.num_heads * config.head_dim, width, width], -1)
    return q, k, v


def passed(decoder: Decoder, tokens_BT: Tensor, supplied: Sequence[Pair] = (), num_prompt: int = 0) -> tuple[Tensor, list[Pair]]:
    """The model's last states, and every layer's own keys; the first num_prompt tokens' keys are the supplied ones."""
    x_BTD, pairs = decoder.embedded(tokens_BT.flatten()).view(*tokens_BT.shape, -1), []
    for index, layer in enumerate(decoder.layers):
        q, k, v = projected(decoder, layer, x_BTD)
        pairs.append((k, v))
        if supplied:
            k, v = (torch.cat([theirs[:, :num_prompt].to(own.dtype), own[:, num_prompt:]], 1) for own, theirs in zip((k, v), supplied[index]))
        x_BTD = behind_layer(decoder, index, x_BTD, (q, k, v))
    return x_BTD, pairs


def read_by(decoder: Decoder, predictor: Predictor, tokens_BT: Tensor) -> list[Pair]:
    """Keys and values of each layer of the reader."""
    x_BTD, pairs, extra = decoder.embedded(tokens_BT.flatten()).view(*tokens_BT.shape, -1), [], predictor.corrections
    for at, index in enumerate(predictor.layers):
        layer = decoder.layers[index]
        if extra:
            names = ("qkv", "o", "gate_up", "down")
            layer = replace(layer, **{name: Corrected(getattr(layer, name), extra[f"{name}.in"][at], extra[f"{name}.out"][at]) for name in names})
        q, k, v = projected(decoder, layer, x_BTD)
        pairs.append((k, v))
        if at < len(predictor.layers) - 1:
            layers = (*decoder.layers[:index], layer, *decoder.layers[index + 1 :])
            x_BTD = behind_layer(replace(decoder, layers=layers), index, x_BTD, (q, k, v))
    return pairs


def supplied_by(decoder: Decoder, predictor: Predictor, tokens_BT: Tensor) -> list[Pair]:
    """Keys and values of each layer of the model, as the predictor makes them."""
    read, tensors = read_by(decoder, predictor, tokens_BT), predictor.tensors
    return [
        (F.linear(read[at][0], tensors["k"][i], tensors["k_bias"][i]), F.linear(read[at][1], tensors["v"][i], tensors["v_bias"][i]))
        for i, at in enumerate(predictor.sources)
    ]


def distance(found: Sequence[Pair], wanted: Sequence[Pair]) -> Tensor:
    """Mean over layers, keys and values of the mean absolute difference, as a share of the mean size."""
    shares = [(x.float() - y.float()).abs().mean() / y.float().abs().mean() for a, b in zip(found, wanted, strict=True) for x, y in zip(a, b)]
    return torch.stack(shares).mean()


# closed form


@torch.no_grad()
def fit_maps(
    decoder: Decoder, predictor: Predictor, texts: Sequence[Sequence[int]], recipe: PredictorRecipe | None = None, *, ridge: float = 1e-3
) -> Predictor:  # fmt: skip
    """The predictor with the maps, and from the sources, that leave least of the model's keys on these texts, which are equally long."""
    recipe = recipe or PredictorRecipe()
    check_open(decoder)
    num, config = len(predictor.layers), decoder.config
    width = config.num_kv_heads * config.head_dim + 1
    square = torch.zeros(num, 2, width, width, dtype=torch.float64, device=decoder.device)
    product = torch.zeros(num, 2, width, config.num_layers * (width - 1), dtype=torch.float64, device=decoder.device)
    power = torch.zeros(2, config.num_layers, dtype=torch.float64, device=decoder.device)
    for tokens in batches(decoder, texts, recipe):
        with recipe.products(decoder):
            wanted, read = passed(decoder, tokens)[1], read_by(decoder, predictor, tokens)
        for side in (0, 1):
            y = torch.cat([pair[side].flatten(0, 1).double() for pair in wanted], -1)
            power[side] += y.square().sum(0).view(config.num_layers, -1).sum(1)
            for at in range(num):
                x = F.pad(read[at][side].flatten(0, 1).double(), (0, 1), value=1.0)
                square[at, side] += x.T @ x
                product[at, side] += x.T @ y
    damped = square + ridge * square.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(width, device=square.device)
    solved = torch.linalg.solve(damped, product)
    left = power - (solved * (2 * product - square @ solved)).sum(2).view(num, 2, config.num_layers, -1).sum(-1)
    best = (left / power).sum(1).argmin(0).tolist()
    sources, tensors = list(predictor.sources), {name: x.clone() for name, x in predictor.tensors.items()}
    for layer in range(config.num_layers):
        if predictor.layers[: layer + 1] == tuple(range(layer + 1)):
            continue  # the reader has these keys already
        sources[layer] = best[layer]
        for side, name in enumerate("kv"):
            found = solved[best[layer], side].view(width, config.num_layers, -1)[:, layer]
            tensors[name][layer], tensors[f"{name}_bias"][layer] = found[:-1].T.to(tensors[name]), found[-1].to(tensors[name])
    return replace(predictor.with_tensors(tensors), sources=tuple(sources))


# by gradients


def fit_predictor(
    decoder: Decoder, predictor: Predictor, texts: Sequence[Sequence[int]], recipe: PredictorRecipe | None = None, *,
    on_step: Callable[[int, float], None] = lambda i, x: None,
) -> Predictor:  # fmt: skip
    """The predictor trained on texts of at least `length` tokens each. decoder: float32, in plain PyTorch; the predictor's tensors go where it is.

    Raises BadField for texts that are too short or too few, Unsupported for a decoder that gradients do not pass through.
    """
    recipe = recipe or PredictorRecipe()
    check_open(decoder)
    predictor.check(decoder.config)
    check_texts(texts, batch=recipe.batch, length=recipe.length)
    draws, start = torch.Generator().manual_seed(recipe.seed), time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: tensor.detach().to(decoder.device).float().clone().requires_grad_() for name, tensor in predictor.tensors.items()}
        optimizer = torch.optim.AdamW(tensors.values(), lr=recipe.rate, weight_decay=0.0)
        losses = []
        for step in steps(optimizer, rate=recipe.rate, max_steps=recipe.max_steps, max_seconds=recipe.max_seconds, warm=20):
            chosen = torch.randint(len(texts), (recipe.batch,), generator=draws).tolist()
            tokens = torch.tensor([cut(texts[i], recipe.length, draws) for i in chosen], device=decoder.device)
            num_prompt = int(torch.randint(recipe.length // 4, recipe.length, (1,), generator=draws))
            with recipe.products(decoder):
                loss = loss_of(decoder, predictor.with_tensors(tensors), tokens, num_prompt=num_prompt, recipe=recipe)
            step_down(optimizer, loss, tensors.values())
            losses.append(loss.detach())
            on_step(step, float(loss.detach()) if step % 10 == 0 else torch.nan)
    seen = [round(float(x), 4) for x in losses[:: max(1, len(losses) // 20)]]
    facts: dict[str, object] = {
        "num_steps": len(losses), "num_tokens": len(losses) * recipe.batch * recipe.length, "loss": seen,
        "seconds": round(time.perf_counter() - start, 1), "device": decoder.device.type,
    }  # fmt: skip
    trained = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return replace(predictor.with_tensors(trained), facts=predictor.facts | facts)


def loss_of(decoder: Decoder, predictor: Predictor, tokens_BT: Tensor, *, num_prompt: int, recipe: PredictorRecipe) -> Tensor:
    """Mean divergence a token, plus what the keys' distance weighs."""
    with torch.no_grad():
        wanted_BTD, own = passed(decoder, tokens_BT)
        wanted = head(decoder, wanted_BTD).float().log_softmax(-1)
    supplied = supplied_by(decoder, predictor, tokens_BT)
    found = head(decoder, passed(decoder, tokens_BT, supplied, num_prompt)[0]).float().log_softmax(-1)
    loss = F.kl_div(found, wanted, reduction="sum", log_target=True) / tokens_BT.numel()
    return loss + recipe.keys * distance(supplied, own) if recipe.keys else loss


def batches(decoder: Decoder, texts: Sequence[Sequence[int]], recipe: PredictorRecipe) -> Iterator[Tensor]:
    """[B, T] of texts in order, on the decoder's device."""
    for start in range(0, len(texts), recipe.batch):
        yield torch.tensor([list(text) for text in texts[start : start + recipe.batch]], device=decoder.device)


@torch.no_grad()
def measured(decoder: Decoder, predictor: Predictor, texts: Sequence[Sequence[int]], recipe: PredictorRecipe) -> Mapping[str, float]:
    """On texts whose first half counts as the prompt: of tokens behind it, the mean divergence from the model in nats, and how often both would say
    the same, behind predicted keys and, `blind_`, without the prompt; `first_`: of the first token alone; `keys`: the distance of keys."""
    num, sums, far = recipe.length // 2, torch.zeros(6, dtype=torch.float64), 0.0
    predictor = predictor.with_tensors({name: x.to(decoder.device).float() for name, x in predictor.tensors.items()})
    for tokens in batches(decoder, [text[: recipe.length] for text in texts], recipe):
        with recipe.products(decoder):
            states, own = passed(decoder, tokens)
            supplied = supplied_by(decoder, predictor, tokens)
            behind, alone = passed(decoder, tokens, supplied, num)[0], passed(decoder, tokens[:, num:])[0]
            wanted, found, blind = (head(decoder, x).float().log_softmax(-1) for x in (states[:, num - 1 :], behind[:, num - 1 :], alone))
        far += float(distance(supplied, own)) * len(tokens)
        for at, (some, other) in enumerate(((found, wanted), (blind, wanted[:, 1:]), (found[:, :1], wanted[:, :1]))):
            sums[2 * at] += (F.kl_div(some, other, reduction="sum", log_target=True) / some.shape[1]).double().cpu()
            sums[2 * at + 1] += (some.argmax(-1) == other.argmax(-1)).double().mean(1).sum().cpu()
    names = ("kl", "agreement", "blind_kl", "blind_agreement", "first_kl", "first_agreement", "keys")
    return {name: round(x / len(texts), 4) for name, x in zip(names, (*sums.tolist(), far), strict=True)}
