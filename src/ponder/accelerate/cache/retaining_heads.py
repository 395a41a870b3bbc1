"""Retaining heads: what they are, how they read a token, their file. Trained by `ponder train-cache` (train/retaining_heads).

Equation   reading = W_out relu(W_in z + b_in) + b_out,  z = ([q; k; v] - mean) / scale of the token, before rotation; one number per key head
Shapes     q [T, H, E], k, v [T, K, E] -> float32 [T, K]. By layer: W_in [F, I], W_out [I, K] with F = (H + 2 K) E features, I hidden units

Rows go through the products one by one (a batch of one-row products), so that a reading does not depend on its company.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder retaining heads 1"
TENSORS = ("mean", "scale", "w_in", "b_in", "w_out", "b_out")
CHUNK = 256  # rows at a time
MEND = "name a file that `ponder train-cache` wrote"


@dataclass(frozen=True, eq=False, kw_only=True)
class RetainingHeads:
    """A TokenReader (core.evidence). Tensors are float32, their first dimension the layers. facts: how they were trained, what they reach."""

    model_id: str  # as core.probe.checkpoint_of names the model
    mean: Tensor = field(repr=False)  # [L, F]
    scale: Tensor = field(repr=False)  # [L, F]
    w_in: Tensor = field(repr=False)  # [L, F, I]
    b_in: Tensor = field(repr=False)  # [L, I]
    w_out: Tensor = field(repr=False)  # [L, I, K]
    b_out: Tensor = field(repr=False)  # [L, K]
    facts: dict[str, object] = field(repr=False)
    digest: str = field(init=False)  # of the weights: one head's readings are never taken for another's

    def __post_init__(self) -> None:
        data = b"".join(getattr(self, name).detach().contiguous().numpy().tobytes() for name in TENSORS)
        object.__setattr__(self, "digest", hashlib.sha256(data).hexdigest()[:12])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetainingHeads) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def read(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """Raises BadField for a model of another shape."""
        z_TF = features(q_THE, k_TKE, v_TKE)
        if layer >= len(self.w_in) or z_TF.shape[1] != self.w_in.shape[1] or k_TKE.shape[1] != self.w_out.shape[2]:
            raise BadField(
                f"retaining heads of {self.model_id}, {len(self.w_in)} layers of {self.w_in.shape[1]} features and {self.w_out.shape[2]} key heads: "
                f"layer {layer} of this model has {z_TF.shape[1]} and {k_TKE.shape[1]}; train heads on it (`ponder train-cache`)"
            )
        parts = ((z_TF - self.mean[layer]) / self.scale[layer]).split(CHUNK)
        return torch.cat([self._row_products(layer, part[:, None])[:, 0] for part in parts])

    def _row_products(self, layer: int, z_T1F: Tensor) -> Tensor:
        num = len(z_T1F)
        inner_T1I = (torch.bmm(z_T1F, self.w_in[layer].expand(num, -1, -1)) + self.b_in[layer]).relu()
        return torch.bmm(inner_T1I, self.w_out[layer].expand(num, -1, -1)) + self.b_out[layer]


def features(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
    """float32 [T, F]"""
    return torch.cat([part.float().flatten(1) for part in (q_THE, k_TKE, v_TKE)], 1)


def save_retaining_heads(heads: RetainingHeads, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": heads.model_id, "facts": json.dumps(heads.facts, sort_keys=True)}
    save_tensors({name: getattr(heads, name) for name in TENSORS}, facts, path)


def load_retaining_heads(path: Path) -> RetainingHeads:
    """Raises BadField for a file that holds no such heads, StoreError for one that cannot be read."""
    tensors, facts = load_tensors(path, MEND)
    if facts.get("kind") != KIND or set(tensors) != set(TENSORS):
        raise BadField(f"{path} holds no retaining heads; {MEND}")
    _check(tensors, path)
    return RetainingHeads(model_id=facts["model_id"], facts=json.loads(facts["facts"]), **tensors)


def _check(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises BadField for shapes that do not fit and values that are no numbers."""
    fits = tensors["w_in"].dim() == tensors["w_out"].dim() == 3 and all(x.dtype == torch.float32 for x in tensors.values())
    if fits:
        (layers, num_features, inner), num_heads = tensors["w_in"].shape, tensors["w_out"].shape[2]
        wanted = {
            "mean": (layers, num_features), "scale": (layers, num_features), "b_in": (layers, inner), "w_out": (layers, inner, num_heads),
            "b_out": (layers, num_heads),
        }  # fmt: skip
        fits = all(tensors[name].shape == shape for name, shape in wanted.items()) and bool((tensors["scale"] > 0).all())
    if not fits or not all(bool(torch.isfinite(x).all()) for x in tensors.values()):
        raise BadField(f"{path} is damaged (shapes or values do not fit); train the heads again")
