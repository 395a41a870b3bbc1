"""Keys and values of prompts that a smaller model supplies: who reads them for the model, the maps to the model's own, and their file.

The reader is made of some of the model's own layers, in order, each with a correction of low rank or none, and reads a prompt as a model
of these layers would. Of keys k_j before rotation and values v_j of its layer j = sources[l], layer l of the model has

    k_l = rotate(K_l k_j + b_l),  v_l = V_l v_j + c_l

for every token of a prompt, and its own for every token of an answer.

Shapes: L layers, M of the reader, J = K * E width of a token's keys, R rank of corrections.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import ModelConfig
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder key predictor 1"
MAPS = ("k", "v", "k_bias", "v_bias")
CORRECTED = ("qkv", "o", "gate_up", "down")  # matrices of a layer, as core.formats.LayerWeights has them


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictor:
    """Tensors of one dtype. corrections: M.in [M, R, in] and M.out [M, out, R] for each M of CORRECTED, or nothing. facts: how it was trained."""

    model_id: str  # as core.probe.checkpoint_of names the model
    layers: tuple[int, ...]  # of the model, that the reader is made of
    sources: tuple[int, ...]  # [L] the layer of the reader that each layer's keys come from
    k: Tensor = field(repr=False)  # [L, J, J]
    v: Tensor = field(repr=False)
    k_bias: Tensor = field(repr=False)  # [L, J]
    v_bias: Tensor = field(repr=False)
    corrections: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that may be trained, by name."""
        return {name: getattr(self, name) for name in MAPS} | dict(self.corrections)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Predictor":
        """The same with other tensors."""
        rest = {name: x for name, x in tensors.items() if name not in MAPS}
        return replace(self, corrections=rest, **{name: tensors[name] for name in MAPS})  # type: ignore[arg-type]

    def correction(self, at: int) -> dict[str, Tensor]:
        """What is added to the matrices of the reader's layer `at`, float32, by their names."""
        if not self.corrections:
            return {}
        return {name: self.corrections[f"{name}.out"][at].float() @ self.corrections[f"{name}.in"][at].float() for name in CORRECTED}

    @cached_property
    def name(self) -> str:
        """What a model's id says of its results: equal only for equal tensors."""
        found = sha256(f"{self.model_id} {self.layers} {self.sources}".encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"/predictor-{found.hexdigest()[:16]}"

    def check(self, config: ModelConfig) -> None:
        """Raises BadField for a predictor of a model of another shape."""
        num, width, heads = config.num_layers, config.num_kv_heads * config.head_dim, config.num_heads * config.head_dim
        wanted = dict.fromkeys(("k", "v"), (num, width, width)) | dict.fromkeys(("k_bias", "v_bias"), (num, width))
        if self.corrections:
            rank, each = self.corrections.get("o.in", self.k).shape[1], len(self.layers)
            sizes = {"qkv": (config.dim, heads + 2 * width), "o": (heads, config.dim)}
            sizes |= {"gate_up": (config.dim, 2 * config.ffn_dim), "down": (config.ffn_dim, config.dim)}
            for name, (num_in, num_out) in sizes.items():
                wanted |= {f"{name}.in": (each, rank, num_in), f"{name}.out": (each, num_out, rank)}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        are_there = bool(self.layers) and set(self.layers) <= set(range(num)) and len(self.sources) == num
        if not are_there or not set(self.sources) <= set(range(len(self.layers))) or found != wanted:
            raise BadField(
                f"a key predictor by layers {self.layers}, sources {self.sources}, with {found}: this model wants {wanted}; train one on this model"
            )


def save_predictor(predictor: Predictor, path: Path) -> None:
    """Writes safetensors, bfloat16. Raises StoreError."""
    facts = {"kind": KIND, "model_id": predictor.model_id, "layers": json.dumps(predictor.layers), "sources": json.dumps(predictor.sources)}
    facts["facts"] = json.dumps(predictor.facts)
    save_tensors({name: tensor.detach().cpu().bfloat16() for name, tensor in predictor.tensors.items()}, facts, path)


def load_predictor(path: Path) -> Predictor:
    """Raises BadField for a file that holds no predictor, StoreError for one that cannot be read."""
    mend = "name a file that `ponder train-keys` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or not set(MAPS) <= set(tensors):
        raise BadField(f"{path} holds no key predictor; {mend}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise BadField(f"{path} is damaged (values that are no numbers); train the predictor again")
    layers, sources = (tuple(json.loads(facts[name])) for name in ("layers", "sources"))
    maps = {name: tensors.pop(name) for name in MAPS}
    return Predictor(
        model_id=facts["model_id"], layers=layers, sources=sources, facts=json.loads(facts["facts"]), corrections=tensors, **maps
    )  # fmt: skip
