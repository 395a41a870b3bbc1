"""A key predictor (core.predictor) packed for a decoder: the layers that read prompts, and the maps from their keys to all layers'.

Shapes: T rows, L layers, M of the reader, K key heads, E head width, J = K * E.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.errors import BadField, Unsupported
from ponder.core.formats import Checkpoint, LayerBody, LayerWeights, Linear, ModelConfig, WeightFormat
from ponder.core.predictor import CORRECTED, Predictor
from ponder.core.probe import checkpoint_of
from ponder.models.tail import Rows

PARTS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
assert tuple(PARTS) == CORRECTED


@dataclass(frozen=True)
class PackedMap:
    """From one layer's keys or values of the reader to those of several layers. Row i of a result depends on row i alone."""

    layers: tuple[int, ...]  # of the model
    matrix: Linear | None  # None: they are the reader's own
    bias: Tensor  # [len(layers) * J]

    def apply(self, x_TKE: Tensor) -> dict[int, Tensor]:
        """[T, K, E] of each layer."""
        if self.matrix is None:
            return dict.fromkeys(self.layers, x_TKE)
        found = self.matrix.apply(x_TKE.flatten(1).contiguous()) + self.bias
        return dict(zip(self.layers, found.to(x_TKE.dtype).view(len(x_TKE), len(self.layers), *x_TKE.shape[1:]).unbind(1), strict=True))


@dataclass(frozen=True, kw_only=True)
class PackedPredictor:
    """What reads prompts, and what is made of its keys. maps: of keys and of values, by layer of the reader."""

    bodies: tuple[LayerBody, ...]  # [M]
    maps: tuple[tuple[tuple[PackedMap, ...], tuple[PackedMap, ...]], ...]  # [M]

    @property
    def num(self) -> int:
        return len(self.bodies)

    @property
    def num_products(self) -> int:
        """Matrices [J, J] that every token of a prompt meets."""
        return sum(len(one.layers) for both in self.maps for some in both for one in some if one.matrix is not None)

    def pairs_of(self, at: int, k_TKE: Tensor, v_TKE: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys (not rotated, as those that are given) and values of the layers whose source is layer `at` of the reader."""
        keys, values = ({layer: x for one in some for layer, x in one.apply(given).items()} for some, given in zip(self.maps[at], (k_TKE, v_TKE)))
        return {layer: (keys[layer], values[layer]) for layer in keys}


def packed_maps(
    predictor: Predictor, weights: WeightFormat, dtype: torch.dtype
) -> tuple[tuple[tuple[PackedMap, ...], tuple[PackedMap, ...]], ...]:  # fmt: skip
    """Of each layer of the reader; maps that change nothing are left out."""
    made: list[Linear] = []

    def of(at: int, name: str) -> tuple[PackedMap, ...]:
        whole, bias = predictor.tensors[name], predictor.tensors[f"{name}_bias"]
        mine = [layer for layer, source in enumerate(predictor.sources) if source == at]
        same = [layer for layer in mine if is_identity(whole[layer], bias[layer])]
        other = [layer for layer in mine if layer not in same]
        found = [PackedMap(tuple(same), None, bias[:0].flatten())] if same else []
        if other:
            matrix = weights.pack(tuple(Rows(whole[layer], f"predictor.{name}.{layer}") for layer in other))
            made.append(matrix)
            found.append(PackedMap(tuple(other), matrix, bias[other].flatten().to(dtype)))
        return tuple(found)

    maps = tuple((of(at, "k"), of(at, "v")) for at in range(len(predictor.layers)))
    if made:
        weights.complete(made)
    return maps


def is_identity(matrix: Tensor, bias: Tensor) -> bool:
    return torch.equal(matrix.float(), torch.eye(len(matrix))) and not bool(bias.any())


def corrected(checkpoint: Checkpoint, layer: LayerWeights, index: int, correction: dict[str, Tensor], *, weights: WeightFormat) -> LayerWeights:
    """A layer whose matrices are the checkpoint's with something added."""
    changed = {}
    for name, parts in PARTS.items():
        dense = [checkpoint.tensor(f"layers.{index}.{part}").dense() for part in parts]
        added = correction[name].split([len(rows) for rows in dense])
        named = zip(parts, dense, added, strict=True)
        changed[name] = weights.pack(tuple(Rows(rows + more, f"predictor.{index}.{part}") for part, rows, more in named))
    weights.complete(list(changed.values()))
    return replace(layer, **changed)


def check_predictor(predictor: Predictor, config: ModelConfig, model_id: str) -> None:
    """Raises BadField for a predictor of another model, Unsupported for a model whose attention has more than one knows."""
    if predictor.model_id != checkpoint_of(model_id):
        raise BadField(f"a key predictor of model {predictor.model_id}: this is {checkpoint_of(model_id)}; train one on this model")
    predictor.check(config)
    check_alike(config)


def check_alike(config: ModelConfig) -> None:
    """Raises Unsupported."""
    alike = not (any(config.windows) or config.rotary_layers or config.rope_local_theta or config.num_experts)
    if config.unusual or not alike:
        raise Unsupported(f"a key predictor of a {config.arch} model: its layers must be plain, and see and rotate alike; use a Llama or a Qwen2")
