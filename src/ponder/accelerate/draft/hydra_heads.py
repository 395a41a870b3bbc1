"""Heads that read their own guesses: what they are, how they score, their file. Trained by `ponder train-heads --kind hydra` (train/guessing).

Equation   u_0 = h / |h|,  z = [u_{k-1}; e_k / |e_k|],  u_k = L z + B (silu(G z) * V z),  log p_k = log softmax over scored ids of rows (|h| u_k)
           k = 1..K: the token behind x_k. x_1 was drawn from h, the x after it are guesses; e_k is x_k's row (0 where it has none), |.| the
           root of the mean square. Head k has the tensors of cell min(k, C)
Shapes     h [N, D], x [N] -> u [N, D], log p [N, S]. inner [C, 2 F + D, 2 D] is G, V and L, outer [C, D, F] is B; ids [R], of which the first S
           are scored. Rows are the target's own, looked up when drafting begins: the file has none of them

A head scores a short list of tokens, the most frequent of the target's own text: a token that is not in it is never guessed.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder hydra heads 1"
TENSORS = ("inner", "outer", "ids")


@dataclass(frozen=True, eq=False, kw_only=True)
class HydraHeads:
    """Tensors are bfloat16 but ids, int64. facts: measured on held-out text, and how they were trained."""

    model_id: str  # as core.probe.checkpoint_of names the target
    num: int  # K
    num_scored: int  # S
    inner: Tensor = field(repr=False)  # [C, 2 F + D, 2 D]
    outer: Tensor = field(repr=False)  # [C, D, F]
    ids: Tensor = field(repr=False)  # [R], most frequent first
    facts: dict[str, object]

    @property
    def dim(self) -> int:
        return self.outer.shape[1]

    @cached_property
    def place(self) -> dict[int, int]:
        """Token -> its place in ids."""
        return {token: at for at, token in enumerate(self.ids.tolist())}

    def cell(self, head: int) -> int:
        """Place of the tensors of a head, the first of which is 0."""
        return min(head, len(self.outer) - 1)


def size_of(x_ND: Tensor) -> Tensor:
    """Root of the mean square [N, 1], above 0."""
    return x_ND.float().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)


def gated(inner_NX: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(what B multiplies [N, F], L z [N, D]) of G z, V z and L z side by side."""
    num = (inner_NX.shape[-1] - width) // 2
    g_NF, v_NF, straight_ND = inner_NX.split([num, num, width], -1)
    return F.silu(g_NF) * v_NF, straight_ND


def stepped(inner_XE: Tensor, outer_DF: Tensor, u_ND: Tensor, e_ND: Tensor) -> Tensor:
    """u_k of u_{k-1} and the rows of x_k, by plain products: what training runs, and what drafting must equal up to rounding."""
    gate_NF, straight_ND = gated(F.linear(torch.cat([u_ND, e_ND / size_of(e_ND).to(e_ND)], -1), inner_XE), u_ND.shape[-1])
    return straight_ND + F.linear(gate_NF, outer_DF)


def save_hydra(heads: HydraHeads, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": heads.model_id, "num": str(heads.num), "num_scored": str(heads.num_scored)}
    save_tensors({name: getattr(heads, name) for name in TENSORS}, facts | {"facts": json.dumps(heads.facts, sort_keys=True)}, path)


def load_hydra(path: Path) -> HydraHeads:
    """Raises BadField for a file that holds no such heads, StoreError for one that cannot be read."""
    mend = "name a file that `ponder train-heads` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or set(tensors) != set(TENSORS):
        raise BadField(f"{path} holds no heads; {mend}")
    heads = HydraHeads(
        model_id=facts["model_id"], num=int(facts["num"]), num_scored=int(facts["num_scored"]), facts=json.loads(facts["facts"]), **tensors
    )
    if not fits(heads):
        raise BadField(f"{path} is damaged (shapes or values do not fit); train the heads again")
    return heads


def fits(heads: HydraHeads) -> bool:
    """Whether shapes fit and values are numbers."""
    if heads.inner.dim() != 3 or heads.outer.dim() != 3 or heads.ids.dim() != 1 or heads.ids.dtype != torch.int64:
        return False
    num, width, inner = heads.outer.shape
    is_right = heads.inner.shape == (num, 2 * inner + width, 2 * width) and num >= 1 and heads.num >= 1
    is_right = is_right and 1 <= heads.num_scored <= len(heads.ids) and bool((heads.ids >= 0).all())
    return is_right and bool(torch.isfinite(heads.inner).all() and torch.isfinite(heads.outer).all())
