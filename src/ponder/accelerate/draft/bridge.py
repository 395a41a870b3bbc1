"""Bridges: what maps a model's hidden state after its first layers to the one after all of them. Trained by `ponder train-bridge`.

Equation   late ~ h + (h A) B + b, h the state after `layer` layers and the final norm
Shapes     h [N, D] -> [N, D]. A [D, R], B [R, D], b [D]
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder bridge 1"
TENSORS = ("down", "up", "bias")


@dataclass(frozen=True, eq=False, kw_only=True)
class Bridge:
    """Tensors are float32. facts: what was measured on held-out text, and how it was trained."""

    model_id: str  # as core.probe.checkpoint_of names the model
    layer: int  # layers that the early state has behind it
    down: Tensor = field(repr=False)  # A
    up: Tensor = field(repr=False)  # B
    bias: Tensor = field(repr=False)  # b
    facts: dict[str, object]

    @property
    def rank(self) -> int:
        return len(self.up)

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """In the type of the states. Raises BadField for states of another width."""
        if hidden_ND.shape[-1] != len(self.bias):
            raise BadField(
                f"states of width {hidden_ND.shape[-1]}: this bridge was trained on {self.model_id}, width {len(self.bias)}; train another"
            )
        h_ND = hidden_ND.float()
        down, up, bias = (x.to(h_ND.device) for x in (self.down, self.up, self.bias))
        return (h_ND + (h_ND @ down) @ up + bias).to(hidden_ND.dtype)


def save_bridge(bridge: Bridge, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": bridge.model_id, "layer": str(bridge.layer), "facts": json.dumps(bridge.facts, sort_keys=True)}
    save_tensors({name: getattr(bridge, name) for name in TENSORS}, facts, path)


def load_bridge(path: Path) -> Bridge:
    """Raises BadField for a file that holds no bridge, StoreError for one that cannot be read."""
    mend = "name a file that `ponder train-bridge` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or set(tensors) != set(TENSORS):
        raise BadField(f"{path} holds no bridge; {mend}")
    width, rank = tensors["bias"].numel(), len(tensors["up"])
    shapes = {"down": (width, rank), "up": (rank, width), "bias": (width,)}
    if any(tuple(tensors[name].shape) != shape or not bool(torch.isfinite(tensors[name]).all()) for name, shape in shapes.items()):
        raise BadField(f"{path} is damaged (shapes or values do not fit); train the bridge again")
    return Bridge(model_id=facts["model_id"], layer=int(facts["layer"]), facts=json.loads(facts["facts"]), **tensors)
