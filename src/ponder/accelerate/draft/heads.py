"""Medusa heads: what they are, how they score, their file. Trained by `ponder train-heads` (train/draft_heads).

Equation   log p_k = log softmax over `ids` of  rows (h + |h| silu(R_k [h / |h|; e / |e|])),  k = 1..K: the k-th token after x, where x was
           drawn from h, e is its row (0 where it has none) and |.| the root of the mean square
Shapes     hidden [N, D], x [N] -> log p [N, K, S]. rows [S, D] are the target's own output head at `ids`, untrained; R [K, D, 2 D]

A head scores a short list of tokens, the most frequent of the target's own text: a token that is not in it is never guessed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.draft.products import Product, product
from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder medusa heads 1"


@dataclass(frozen=True, eq=False, kw_only=True)
class Heads:
    """Tensors are bfloat16 but ids, int64. facts: measured top-1 shares by head on held-out text, and how they were trained."""

    model_id: str  # as core.probe.checkpoint_of names the target
    residual: Tensor = field(repr=False)  # R [K, D, 2 D]
    rows: Tensor = field(repr=False)  # [S, D]
    ids: Tensor = field(repr=False)  # [S] tokens that the rows stand for
    facts: dict[str, object]

    @property
    def num(self) -> int:
        return len(self.residual)

    @cached_property
    def place(self) -> dict[int, int]:
        """Token -> its place in ids."""
        return {token: at for at, token in enumerate(self.ids.tolist())}

    def log_p(self, hidden_ND: Tensor, drawn: Sequence[int]) -> Tensor:
        """float32 [N, K, S], by draft/products; drawn[i] is the token that was drawn from row i. Raises BadField for states of another width."""
        if hidden_ND.shape[-1] != self.rows.shape[-1]:
            raise BadField(f"states of width {hidden_ND.shape[-1]}: these heads were trained on width {self.rows.shape[-1]}; train others")
        places_N = torch.tensor([self.place.get(token, -1) for token in drawn])
        return _scores(self.products, self.rows, hidden_ND.float().cpu(), places_N).log_softmax(-1)

    @cached_property
    def products(self) -> tuple[Product, Product]:
        return product(self.residual.flatten(0, 1)), product(self.rows)


def scored(residual_KDE: Tensor, rows_SD: Tensor, h_ND: Tensor, places_N: Tensor) -> Tensor:
    """float32 logits [N, K, S]; places: where in rows the drawn token's is, -1 for none. Plain products, in the type of h: what is trained."""
    residual_XE = residual_KDE.to(h_ND.dtype).flatten(0, 1)
    return _scores((lambda x: x @ residual_XE.T, lambda x: x @ rows_SD.T), rows_SD, h_ND, places_N).float()


def _scores(products: tuple[Product, Product], rows_SD: Tensor, h_ND: Tensor, places_N: Tensor) -> Tensor:
    inner, outer = products
    e_ND = torch.where(places_N[:, None] >= 0, rows_SD[places_N.clamp_min(0)], 0.0).to(h_ND)
    size_N1 = _size(h_ND)
    inner_NKD = inner(torch.cat([h_ND / size_N1, e_ND / _size(e_ND)], -1)).unflatten(1, (-1, h_ND.shape[-1]))
    z_NKD = h_ND[:, None] + size_N1[:, None] * F.silu(inner_NKD)
    return outer(z_NKD.flatten(0, 1)).unflatten(0, z_NKD.shape[:2])


def _size(x_ND: Tensor) -> Tensor:
    """Root of the mean square [N, 1], above 0."""
    return x_ND.float().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6).to(x_ND)


def save_heads(heads: Heads, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": heads.model_id, "facts": json.dumps(heads.facts, sort_keys=True)}
    save_tensors({name: getattr(heads, name) for name in ("residual", "rows", "ids")}, facts, path)


def load_heads(path: Path) -> Heads:
    """Raises BadField for a file that holds no heads, StoreError for one that cannot be read."""
    mend = "name a file that `ponder train-heads` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or set(tensors) != {"residual", "rows", "ids"}:
        raise BadField(f"{path} holds no heads; {mend}")
    _check(tensors["residual"], tensors["rows"], tensors["ids"], path)
    return Heads(model_id=facts["model_id"], facts=json.loads(facts["facts"]), **tensors)


def _check(residual_KDE: Tensor, rows_SD: Tensor, ids_S: Tensor, path: Path) -> None:
    """Raises BadField for shapes that do not fit and values that are no numbers."""
    fits = residual_KDE.dim() == 3 and rows_SD.dim() == 2 and ids_S.shape == rows_SD.shape[:1]
    fits = fits and residual_KDE.shape[1:] == (rows_SD.shape[1], 2 * rows_SD.shape[1]) and ids_S.dtype == torch.int64 and 0 not in residual_KDE.shape
    if not fits or not bool(torch.isfinite(residual_KDE).all() and torch.isfinite(rows_SD).all()) or bool((ids_S < 0).any()):
        raise BadField(f"{path} is damaged (shapes or values do not fit); train the heads again")
