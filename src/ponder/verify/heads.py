"""A head: what a verifier has learned about one model's hidden states. Probe (core.probe), file format, calibration.

Equation   p = sigmoid(slope * logit + offset),  logit = w_out . relu(W_in z) + w_skip . z + bias,  z = (h - mean) / scale
Shapes     hidden_ND in the model's dtype -> float64 [N, 1], probabilities. D width, H hidden units of the head (0: linear)

Rows go through the products one by one (a batch of one-row products), so that a reading does not depend on its company;
for the same reason no vectorised exponential is used, whose last bit depends on where in a vector a number lies.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder head 1"
TENSORS = ("mean", "scale", "w_in", "w_out", "w_skip", "bias", "slope", "offset")
PLACES = ("last", "prompt")  # which of a candidate's states the head knows: the last one, or the one before any token


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """Role Probe. Tensors are float32 but slope and offset, float64: the calibration, which keeps the order.

    facts: measured error rates on held-out questions, and how it was trained; plain JSON values.
    """

    model_id: str  # as core.probe.checkpoint_of names it
    place: str  # one of PLACES
    mean: Tensor = field(repr=False)  # [D]
    scale: Tensor = field(repr=False)  # [D]
    w_in: Tensor = field(repr=False)  # [D, H]
    w_out: Tensor = field(repr=False)  # [H]
    w_skip: Tensor = field(repr=False)  # [D]
    bias: Tensor = field(repr=False)  # [1]
    slope: Tensor = field(repr=False)  # [1], above 0
    offset: Tensor = field(repr=False)  # [1]
    facts: dict[str, object]
    name: str = field(init=False)  # with a digest of the weights: readings of one head are never taken for another's

    def __post_init__(self) -> None:
        data = b"".join(getattr(self, name).detach().contiguous().numpy().tobytes() for name in TENSORS)
        digest = hashlib.sha256(data + f"{self.model_id} {self.place}".encode()).hexdigest()
        object.__setattr__(self, "name", f"head-{digest[:12]}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """float64 [N], before calibration. Raises BadField for states of another width."""
        if hidden_ND.shape[-1] != len(self.mean):
            raise BadField(f"states of width {hidden_ND.shape[-1]}: this head was trained on width {len(self.mean)}; train one on this model")
        z_N1D = ((hidden_ND.float() - self.mean) / self.scale)[:, None]
        num = len(z_N1D)
        inner_N1H = torch.bmm(z_N1D, self.w_in.expand(num, -1, -1)).relu()
        outer_N = torch.bmm(inner_N1H, self.w_out[:, None].expand(num, -1, -1))[:, 0, 0]
        skip_N = torch.bmm(z_N1D, self.w_skip[:, None].expand(num, -1, -1))[:, 0, 0]
        return (outer_N + skip_N + self.bias).double()

    def read(self, hidden_ND: Tensor) -> Tensor:
        logits = (self.slope * self.logits(hidden_ND) + self.offset).tolist()
        return torch.tensor([[sigmoid(x)] for x in logits], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def save_head(head: Head, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": head.model_id, "place": head.place, "facts": json.dumps(head.facts, sort_keys=True)}
    save_tensors({name: getattr(head, name) for name in TENSORS}, facts, path)


def load_head(path: Path) -> Head:
    """Raises BadField for a file that is no head, StoreError for one that cannot be read."""
    tensors, facts = load_tensors(path, "name a head that `ponder train-verifier` wrote")
    if facts.get("kind") != KIND or facts.get("place") not in PLACES or set(tensors) != set(TENSORS):
        raise BadField(f"{path} holds no head; name a file that `ponder train-verifier` wrote")
    check_tensors(tensors, path)
    return Head(model_id=facts["model_id"], place=facts["place"], facts=json.loads(facts["facts"]), **tensors)


def check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises BadField for shapes that do not fit, values that are not finite, scales and a slope that are not above 0."""
    width, hidden = tensors["mean"].numel(), tensors["w_out"].numel()
    shapes = {"mean": (width,), "scale": (width,), "w_in": (width, hidden), "w_out": (hidden,), "w_skip": (width,)}
    shapes |= {"bias": (1,), "slope": (1,), "offset": (1,)}
    wrong = [name for name, shape in shapes.items() if tuple(tensors[name].shape) != shape]
    wrong += [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]
    wrong += [name for name in ("scale", "slope") if bool((tensors[name] <= 0).any())]
    if wrong:
        raise BadField(f"{path} is damaged ({', '.join(wrong)}); train the head again")
