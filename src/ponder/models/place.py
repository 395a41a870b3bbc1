"""A decoder on another device: vectors, tables and embedding move there; its matrices were packed there by their format."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from ponder.core.formats import LayerWeights, WeightFormat
from ponder.models.decoder import BodyOf, Decoder
from ponder.models.embedding import DenseEmbedding
from ponder.models.rotary import Rotary, WholeRotary

STEP = 1 << 12  # rows of the embedding decoded at a time


def place(decoder: Decoder, weights: WeightFormat, device: torch.device) -> Decoder:
    """`decoder`, packed by `weights` for `device`, with all the rest there too. The model's id names the kind of device."""
    body_of = BodyOf(weights, decoder.config, decoder.dtype)
    layers = tuple(place_layer(layer, device) for layer in decoder.layers)
    return replace(
        decoder,
        model_id=f"{decoder.model_id}/{device.type}",
        embed=place_embedding(decoder, device),
        layers=layers,
        bodies=tuple(map(body_of, layers)),
        body_of=body_of,
        norm=decoder.norm.to(device),
        tables=tuple(place_table(table, decoder.config.context_len, device) for table in decoder.tables),
    )


def place_table(table: Rotary | WholeRotary, context_len: int, device: torch.device) -> WholeRotary:
    cos, sin = table.upto(context_len) if isinstance(table, Rotary) else (table.cos, table.sin)
    return WholeRotary(cos.to(device), sin.to(device))


def place_layer(layer: LayerWeights, device: torch.device) -> LayerWeights:
    moved = {f.name: x.to(device) for f in fields(layer) if isinstance(x := getattr(layer, f.name), Tensor)}
    if layer.experts is not None:
        moved["experts"] = replace(layer.experts, router=layer.experts.router.to(device))
    return replace(layer, **moved)


def place_embedding(decoder: Decoder, device: torch.device) -> DenseEmbedding:
    """All rows, in the decoder's dtype."""
    config = decoder.config
    weight_VD = torch.empty(config.vocab_size, config.dim, dtype=decoder.dtype, device=device)
    for start in range(0, config.vocab_size, STEP):
        tokens = torch.arange(start, min(start + STEP, config.vocab_size))
        weight_VD[start : start + STEP] = decoder.embed.rows(tokens).to(device)
    return DenseEmbedding(weight_VD)
