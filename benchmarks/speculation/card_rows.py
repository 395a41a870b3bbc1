"""Trial of block sizes for products of some rows (native/rows.some_rows) on a card, with the matrices of a model that is open there."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lib.card import seconds_of
from torch import Tensor

from ponder.models.decoder import Decoder
from ponder.native import rows

TRIED = (  # (outputs, inputs at a time, warps, stages)
    (16, 128, 4, 4), (16, 256, 4, 4), (16, 256, 2, 4), (16, 256, 8, 3), (16, 512, 4, 3), (16, 512, 8, 3), (32, 128, 4, 4), (32, 256, 8, 3),
    (16, 128, 2, 6),
)  # fmt: skip
NUM_LAYERS = 12  # whose matrices are met in turn, so that none is found in the cache
NUM_ROUNDS = 6


def kinds(decoder: Decoder, num: int) -> dict[str, tuple[list[Tensor], Callable[[Tensor], object], bool]]:
    """name -> (matrices, the product of `num` rows with one of them, whether its outputs come in pairs)."""
    device, dtype, config = decoder.device, decoder.dtype, decoder.config
    layers = decoder.layers[:NUM_LAYERS]
    into = torch.zeros(num, config.dim, device=device)

    def inputs(width: int) -> Tensor:
        return torch.randn(num, width, device=device).to(dtype)

    cos = sin = torch.ones(num, config.head_dim, device=device)
    x, out, act = inputs(config.dim), inputs(config.num_heads * config.head_dim), inputs(config.ffn_dim)
    body = rows.DeviceBody.weight
    return {
        "qkv": ([body(layer.qkv) for layer in layers], lambda w: rows.some_qkv(x, w, layers[0], config, cos=cos, sin=sin), True),
        "o": ([body(layer.o) for layer in layers], lambda w: rows.some_rows(out, w, into=into), False),
        "gate_up": ([body(layer.gate_up) for layer in layers if layer.gate_up], lambda w: rows.some_rows(x, w, activation="silu"), True),
        "down": ([body(layer.down) for layer in layers if layer.down], lambda w: rows.some_rows(act, w, into=into), False),
    }  # fmt: skip


@torch.inference_mode()
def trial(decoder: Decoder, num: int = 8) -> dict[tuple[int, int, bool], tuple[int, int, int, int]]:
    """Prints microseconds of every choice; the best by (outputs, inputs, whether paired), as `some_blocks_of` is asked."""
    best = {}
    chosen = rows.some_blocks_of
    for name, (weights, product, is_paired) in kinds(decoder, num).items():
        x = torch.randn(num, weights[0].shape[1], device=decoder.device).to(decoder.dtype)
        print(f"{name:8} torch {seconds_of([lambda w=w, x=x: F.linear(x, w) for w in weights], NUM_ROUNDS) * 1e6:6.2f} us", end="")
        found = {}
        for blocks in TRIED:
            rows.some_blocks_of = lambda *_, blocks=blocks, **__: blocks
            try:
                found[blocks] = seconds_of([functools.partial(product, w) for w in weights], NUM_ROUNDS)
            except Exception as error:  # a choice that the card has no room for
                print(f"; {blocks}: {type(error).__name__}", end="")
                continue
            print(f"; {blocks} {found[blocks] * 1e6:.2f}", end="")
        rows.some_blocks_of = chosen
        print(flush=True)
        if found:
            num_out = len(weights[0]) // (2 if is_paired else 1)
            best[num_out, weights[0].shape[1], is_paired] = min(found, key=found.__getitem__)
            print(f"{'':8} best {best[num_out, weights[0].shape[1], is_paired]}: {min(found.values()) * 1e6:.2f} us, "
                  f"{weights[0].nbytes / min(found.values()) / 1e12:.2f} TB/s", flush=True)  # fmt: skip
    return best
