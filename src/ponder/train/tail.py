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

from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import FeedForward
from ponder.core.tail import Tail
from ponder.models.decoder import Decoder, feed_forward, rms_norm, rotate


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
    if len(texts) < recipe.batch or min(map(len, texts)) < recipe.length:
        raise BadField(f"{len(texts)} texts: at least {recipe.batch} of at least {recipe.length} tokens; give more or longer ones")
    draws, start = torch.Generator().manual_seed(recipe.seed), time.process_time()
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: tensor.detach().float().clone().requires_grad_() for name, tensor in tail.tensors.items()}
        optimizer = torch.optim.AdamW(tensors.values(), lr=recipe.rate, weight_decay=0.0)
        order: list[int] = []
        losses = []
        for step in range(recipe.max_steps):
            done = max(step / recipe.max_steps, (time.process_time() - start) / recipe.max_seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * min(1.0, (step + 1) / 5) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
            order = order if len(order) >= recipe.batch else torch.randperm(len(texts), generator=draws).tolist()
            chosen, order = order[: recipe.batch], order[recipe.batch :]
            tokens = torch.tensor([cut(texts[i], recipe.length, draws) for i in chosen])
            with products(recipe):
                loss = loss_of(decoder, tail.with_tensors(tensors), tokens, recipe)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            on_step(step, losses[-1])
    facts: dict[str, object] = {
        "num_steps": len(losses), "num_tokens": len(losses) * recipe.batch * recipe.length, "seconds": round(time.process_time() - start, 1),
        "loss": [round(x, 4) for x in losses[:: max(1, len(losses) // 20)]],
    }  # fmt: skip
    trained = {name: tensor.detach() for name, tensor in tensors.items()}
    return replace(tail.with_tensors(trained), facts=tail.facts | facts)


def cut(text: Sequence[int], length: int, draws: torch.Generator) -> list[int]:
    """A stretch of the text, from anywhere in it."""
    start = int(torch.randint(len(text) - length + 1, (1,), generator=draws))
    return list(text[start : start + length])


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


# the model and its tail, so that gradients pass


def check_open(decoder: Decoder) -> None:
    """Raises Unsupported."""
    config = decoder.config
    if decoder.dtype != torch.float32 or config.unusual or any(config.windows) or config.attn_softcap or config.head_softcap:
        raise Unsupported(f"training a tail of a {config.arch} model in {decoder.dtype}: open a Llama or a Qwen2 with float32 weights")


def between(decoder: Decoder, x_BTD: Tensor, layers: Sequence[int]) -> Tensor:
    """The states behind the model's own layers."""
    config = decoder.config
    parts = [config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.num_kv_heads * config.head_dim]
    for index in layers:
        layer = decoder.layers[index]
        qkv = layer.qkv.apply(normed(decoder, x_BTD, layer.attn_norm))
        qkv = qkv if layer.qkv_bias is None else qkv + layer.qkv_bias
        x_BTD = behind_layer(decoder, index, x_BTD, qkv.split(parts, -1))
    return x_BTD


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


def behind_layer(decoder: Decoder, index: int, x_BTD: Tensor, qkv: Sequence[Tensor]) -> Tensor:
    """The states behind a layer whose queries, keys and values are these, not rotated yet."""
    q, k, v = qkv
    layer, width, (num_texts, num) = decoder.layers[index], decoder.config.head_dim, x_BTD.shape[:2]
    cos, sin = decoder.tables[decoder.table_of[index]].at(torch.arange(num).repeat(num_texts))

    def heads(x: Tensor, is_rotated: bool) -> Tensor:
        x_THE = x.reshape(num_texts * num, -1, width)
        return (rotate(x_THE, cos, sin) if is_rotated else x_THE).view(num_texts, num, -1, width).transpose(1, 2)

    out = F.scaled_dot_product_attention(heads(q, True), heads(k, True), heads(v, False), is_causal=True, enable_gqa=True)
    x_BTD = x_BTD + layer.o.apply(out.transpose(1, 2).flatten(2))
    assert layer.gate_up is not None
    assert layer.down is not None
    return x_BTD + feed_forward(normed(decoder, x_BTD, layer.ffn_norm), FeedForward(layer.gate_up, layer.down), decoder.config.activation)


def normed(decoder: Decoder, x_BTD: Tensor, weight: Tensor | None) -> Tensor:
    return x_BTD if weight is None else rms_norm(x_BTD, weight, decoder.config.norm_eps, torch.float32)


def head(decoder: Decoder, x_BTD: Tensor) -> Tensor:
    """Logits [B, T, V]."""
    return decoder.head.apply(normed(decoder, x_BTD, decoder.norm))
