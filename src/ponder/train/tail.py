"""A tail (core.tail) taught to say what the model says: distillation on tokens, its own tensors alone trained. Minutes, one thread.

Model and tail read the same text side by side, the layers before the tail once for both. What is minimised is the divergence of the
tail's next-token distributions from the model's, both at a temperature, and, if wanted, the distance of the states they end in.

Shapes: B texts of T tokens each, D width, V vocabulary.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.tail import Tail
from ponder.models.decoder import Decoder
from ponder.train.descent import check_texts, cut, step_down, steps
from ponder.train.layers import behind_layer, between, check_open, head, normed


@dataclass(frozen=True, kw_only=True)
class TailRecipe:
    """How a tail is trained. Raises BadField."""

    batch: int = 2  # texts of a step
    length: int = 256  # tokens of a text
    rate: float = 5e-4  # of AdamW at its highest; it falls to 0 along a cosine
    temperature: float = 2.0
    states: float = 0.0  # weight of the squared distance of the last states
    max_steps: int = 200
    max_seconds: float = 600.0  # of CPU
    is_half: bool = False  # products in bfloat16: several times as fast where the CPU has matrix registers
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.length, self.max_steps) < 1 or min(self.rate, self.temperature, self.max_seconds) <= 0 or self.states < 0:
            raise BadField(f"{self}: batch, length and max_steps at least 1, rate, temperature and max_seconds above 0, states at least 0")


def fit_tail(
    decoder: Decoder, tail: Tail, texts: Sequence[Sequence[int]], recipe: TailRecipe | None = None, *,
    on_step: Callable[[int, float], None] = lambda i, x: None,
) -> Tail:  # fmt: skip
    """The tail trained on texts of at least `length` tokens each, of which a step takes some. decoder: float32, in plain PyTorch.

    Raises BadField for texts that are too short or too few, Unsupported for a decoder that gradients do not pass through.
    """
    recipe = recipe or TailRecipe()
    check_open(decoder)
    tail.check(decoder.config)
    check_texts(texts, batch=recipe.batch, length=recipe.length)
    draws, start = torch.Generator().manual_seed(recipe.seed), time.process_time()
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: tensor.detach().float().clone().requires_grad_() for name, tensor in tail.tensors.items()}
        optimizer = torch.optim.AdamW(tensors.values(), lr=recipe.rate, weight_decay=0.0)
        order: list[int] = []
        losses = []
        pace = steps(
            optimizer, rate=recipe.rate, max_steps=recipe.max_steps, max_seconds=recipe.max_seconds, warm=5, clock=time.process_time
        )  # fmt: skip
        for step in pace:
            order = order if len(order) >= recipe.batch else torch.randperm(len(texts), generator=draws).tolist()
            chosen, order = order[: recipe.batch], order[recipe.batch :]
            tokens = torch.tensor([cut(texts[i], recipe.length, draws) for i in chosen])
            with products(recipe):
                loss = loss_of(decoder, tail.with_tensors(tensors), tokens, recipe)
            step_down(optimizer, loss, tensors.values())
            losses.append(float(loss.detach()))
            on_step(step, losses[-1])
    facts: dict[str, object] = {
        "num_steps": len(losses), "num_tokens": len(losses) * recipe.batch * recipe.length, "seconds": round(time.process_time() - start, 1),
        "loss": [round(x, 4) for x in losses[:: max(1, len(losses) // 20)]],
    }  # fmt: skip
    trained = {name: tensor.detach() for name, tensor in tensors.items()}
    return replace(tail.with_tensors(trained), facts=tail.facts | facts)


def loss_of(decoder: Decoder, tail: Tail, tokens_BT: Tensor, recipe: TailRecipe) -> Tensor:
    """Mean divergence, times the temperature's square, plus what the states' distance weighs."""
    with torch.no_grad():
        x_BTD = between(decoder, decoder.embedded(tokens_BT.flatten()).view(*tokens_BT.shape, -1), range(tail.start))
        wanted_BTD = between(decoder, x_BTD, range(tail.start, decoder.config.num_layers))
        wanted = (head(decoder, wanted_BTD) / recipe.temperature).log_softmax(-1)
    found_BTD = behind(decoder, x_BTD, tail)
    found = (head(decoder, found_BTD) / recipe.temperature).log_softmax(-1)
    loss = F.kl_div(found, wanted, reduction="sum", log_target=True) / tokens_BT.numel() * recipe.temperature**2
    return loss + recipe.states * F.mse_loss(found_BTD, wanted_BTD) if recipe.states else loss


def products(recipe: TailRecipe) -> torch.autocast:
    """In which products of matrices are bfloat16, if the recipe says so."""
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.is_half)


def measured(decoder: Decoder, tail: Tail, texts: Sequence[Sequence[int]], recipe: TailRecipe) -> dict[str, float]:
    """On the texts' beginnings: mean divergence of the tail from the model, in nats a token, and how often both would say the same."""
    divergence = same = total = 0.0
    with torch.no_grad(), products(recipe):
        for text in texts:
            tokens_BT = torch.tensor([list(text[: recipe.length])])
            x_BTD = between(decoder, decoder.embedded(tokens_BT[0])[None], range(tail.start))
            wanted = head(decoder, between(decoder, x_BTD, range(tail.start, decoder.config.num_layers))).log_softmax(-1)
            found = head(decoder, behind(decoder, x_BTD, tail)).log_softmax(-1)
            divergence += float(F.kl_div(found, wanted, reduction="sum", log_target=True))
            same += float((found.argmax(-1) == wanted.argmax(-1)).sum())
            total += tokens_BT.numel()
    return {"kl": round(divergence / total, 4), "agreement": round(same / total, 4)}


def behind(decoder: Decoder, x_BTD: Tensor, tail: Tail) -> Tensor:
    """The states behind the tail, of those that enter it."""
    read_BTD, config = normed(decoder, x_BTD, tail.norm), decoder.config
    for i, index in enumerate(range(tail.start, config.num_layers)):
        group = i // tail.share
        q = F.linear(normed(decoder, x_BTD, decoder.layers[index].attn_norm), tail.q[i], None if tail.q_bias is None else tail.q_bias[i])
        k = F.linear(read_BTD, tail.k[group], None if tail.k_bias is None else tail.k_bias[group])
        v = F.linear(read_BTD, tail.v[group], None if tail.v_bias is None else tail.v_bias[group])
        x_BTD = behind_layer(decoder, index, x_BTD, (q, k, v))
    return x_BTD
