"""A model in plain PyTorch, on the CPU or a card, through which gradients pass: what trainers of tails and key predictors read texts with."""

import torch

from ponder.accelerate.weights.dense import PlainLinear, stack_rows
from ponder.core.formats import Checkpoint, PlainFormat, RawTensor
from ponder.models.decoder import Decoder, load
from ponder.models.place import place


class Plain(PlainFormat):
    """Matrices as PyTorch holds them, on a device."""

    name, error = "plain", 2.0**-8

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def pack(self, parts: tuple[RawTensor, ...]) -> PlainLinear:
        return PlainLinear(stack_rows(parts, self.dtype).to(self.device))


def plain_decoder(checkpoint: Checkpoint, device: torch.device, *, is_half: bool) -> Decoder:
    """is_half: matrices in bfloat16, for products in it (torch.autocast); all else is float32."""
    weights = Plain(device, torch.bfloat16 if is_half else torch.float32)
    return place(load(checkpoint, weights, None, torch.float32), weights, device)
