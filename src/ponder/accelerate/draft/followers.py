"""Tables of likely followers: what token_recycling begins with, its shape and its file. Filled by train/table.

Shapes     rows int32 [V, 1 + 8]: of a token 1 more than it is, then 1 more than each of its likeliest followers, best first; 0 where none is known
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder followers 1"
KEPT = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Followers:
    """shares: how often the follower of each rank was the one that came, on text that the table was not filled from."""

    model_id: str
    rows: np.ndarray = field(repr=False)
    shares: tuple[float, ...]
    facts: dict[str, object]


def save_followers(table: Followers, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "model_id": table.model_id, "shares": json.dumps(table.shares), "facts": json.dumps(table.facts, sort_keys=True)}
    save_tensors({"rows": torch.from_numpy(table.rows)}, facts, path)


def load_followers(path: Path) -> Followers:
    """Raises BadField for a file that holds no such table, StoreError for one that cannot be read."""
    mend = "name a file that holds a table of followers"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or set(tensors) != {"rows"}:
        raise BadField(f"{path} holds no table of followers; {mend}")
    rows, shares = tensors["rows"], tuple(json.loads(facts["shares"]))
    if (
        rows.dtype != torch.int32
        or rows.dim() != 2
        or rows.shape[1] != 1 + KEPT
        or len(shares) != KEPT
        or bool((rows < 0).any() or (rows > len(rows)).any())
    ):
        raise BadField(f"{path} is damaged (shapes or values do not fit); fill the table again")
    return Followers(model_id=facts["model_id"], rows=rows.numpy(), shares=shares, facts=json.loads(facts["facts"]))
