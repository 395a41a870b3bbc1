"""The last layers of a model, changed so that a prompt need not pass through them: what they are, and their file.

From layer `start` on, keys and values come from the hidden state x that enters layer `start`, through projections of the layers' own
(a group of `share` neighbours has one pair), and queries from each layer's own state through other projections than the model's:

    k, v of group g = K_g n, V_g n with n = norm(x);  q of layer l = Q_l attn_norm_l(x_l);  all else of layer l as it was

So of a prompt only rows that somebody asks for pass through layers `start`.. at all: of the others x gives all that later tokens meet.

Shapes: D width, N changed layers, G groups of them, H query heads, K key heads, E head width.
"""

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder tail 1"
MATRICES, BIASES = ("q", "k", "v"), ("q_bias", "k_bias", "v_bias")


@dataclass(frozen=True, eq=False, kw_only=True)
class Tail:
    """Tensors of one dtype; no biases where the model has none. facts: how it was trained, and what was measured."""

    model_id: str  # as core.probe.checkpoint_of names the model
    start: int  # first changed layer
    share: int = 1  # neighbours that have one pair of keys and values
    norm: Tensor = field(repr=False)  # [D]
    q: Tensor = field(repr=False)  # [N, H * E, D]
    k: Tensor = field(repr=False)  # [G, K * E, D]
    v: Tensor = field(repr=False)
    q_bias: Tensor | None = field(default=None, repr=False)  # [N, H * E]
    k_bias: Tensor | None = field(default=None, repr=False)  # [G, K * E]
    v_bias: Tensor | None = field(default=None, repr=False)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that may be trained, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Tail":
        """The same with other tensors."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    @cached_property
    def name(self) -> str:
        """What a model's id says of its results: equal only for equal tensors."""
        found = sha256(f"{self.model_id} {self.start} {self.share}".encode())
        for name, tensor in self.tensors.items():
            found.update(name.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"/tail-{found.hexdigest()[:16]}"

    def check(self, config: ModelConfig) -> None:
        """Raises BadField for a tail of a model of another shape."""
        num, heads, keys = config.num_layers - self.start, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        groups = -(-num // self.share)
        wanted = {"norm": (config.dim,), "q": (num, heads, config.dim), "k": (groups, keys, config.dim), "v": (groups, keys, config.dim)}
        if config.is_qkv_biased:
            wanted |= {"q_bias": (num, heads), "k_bias": (groups, keys), "v_bias": (groups, keys)}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if self.start < 1 or num < 0 or self.share < 1 or found != wanted:
            raise BadField(f"a tail from layer {self.start}, share {self.share}, with {found}: this model wants {wanted}; train one on this model")


def save_tail(tail: Tail, path: Path) -> None:
    """Writes safetensors, bfloat16. Raises StoreError."""
    facts = {"kind": KIND, "model_id": tail.model_id, "start": str(tail.start), "share": str(tail.share), "facts": json.dumps(tail.facts)}
    save_tensors({name: tensor.detach().bfloat16() for name, tensor in tail.tensors.items()}, facts, path)


def load_tail(path: Path) -> Tail:
    """Raises BadField for a file that holds no tail, StoreError for one that cannot be read."""
    mend = "name a file that `save_tail` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or not {"norm", *MATRICES} <= set(tensors) <= {"norm", *MATRICES, *BIASES}:
        raise BadField(f"{path} holds no tail; {mend}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise BadField(f"{path} is damaged (values that are no numbers); train the tail again")
    start, share = int(facts["start"]), int(facts["share"])
    return Tail(model_id=facts["model_id"], start=start, share=share, facts=json.loads(facts["facts"]), **tensors)
