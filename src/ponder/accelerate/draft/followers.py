"""Tables of likely followers: what token_recycling keeps, and the file of one that it begins with, which train/table fills.

Shapes     rows int32 [R, 1 + 8]: of a token 1 more than it is, then 1 more than each of its likeliest followers, best first; 0 where none is known.
           A token t is in row t mod R. Of pairs of tokens: names int64 [P], pairs int32 [P, 8]; the later pair of a place owns it
"""

import json
from collections.abc import Sequence
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


@dataclass(eq=False)
class Table:
    """What may follow a token, and, where the pair was seen, a token behind another."""

    rows: np.ndarray
    names: np.ndarray
    pairs: np.ndarray

    @staticmethod
    def of(num_rows: int, num_pairs: int, warm: Followers | None) -> "Table":
        rows = np.zeros((num_rows, 1 + KEPT), dtype=np.int32) if warm is None else warm.rows.copy()
        return Table(rows, np.zeros(num_pairs, dtype=np.int64), np.zeros((num_pairs, KEPT), dtype=np.int32))

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.names.nbytes + self.pairs.nbytes

    def after(self, before: int, token: int) -> tuple[list[int], bool]:
        """Likely followers of `token`, best first, and whether they are those behind `before` (-1: none is known)."""
        if len(self.names) and before >= 0 and self.names[place := _place(before, token) % len(self.names)] == _name(before, token):
            return [found - 1 for found in self.pairs[place].tolist() if found], True
        row = self.rows[token % len(self.rows)].tolist()
        return ([found - 1 for found in row[1:] if found] if row[0] == token + 1 else []), False

    def learn(self, before: Sequence[int], tokens: Sequence[int], top: np.ndarray) -> None:
        """Writes what was likeliest, [n, at most 8], after each token, in order."""
        above, followers = np.array(tokens, dtype=np.int64), top.astype(np.int32) + 1
        self.rows[above % len(self.rows), : 1 + top.shape[1]] = np.concatenate([above[:, None].astype(np.int32) + 1, followers], 1)
        if len(self.names):
            ahead = np.array(before, dtype=np.int64)
            known = ahead >= 0
            ahead, above, followers = ahead[known], above[known], followers[known]
            places = _place(ahead, above) % len(self.names)
            self.names[places], self.pairs[places] = _name(ahead, above), 0
            self.pairs[places, : followers.shape[1]] = followers

    def read(self, tokens: Sequence[int]) -> None:
        """Puts what follows each token of a text before what was held likely there."""
        for i in range(len(tokens) - 1):
            token, follower = tokens[i], tokens[i + 1] + 1
            row = self.rows[token % len(self.rows)]
            row[1:] = first_of(follower, row[1:] if row[0] == token + 1 else ())
            row[0] = token + 1
            if i and len(self.names):
                place, name = _place(tokens[i - 1], token) % len(self.names), _name(tokens[i - 1], token)
                self.pairs[place] = first_of(follower, self.pairs[place] if self.names[place] == name else ())
                self.names[place] = name


def first_of(follower: int, others: Sequence[int] | np.ndarray) -> list[int]:
    """`follower`, then the others without it, filled up with 0."""
    kept = [follower, *(x for x in others if x != follower)][:KEPT]
    return kept + [0] * (KEPT - len(kept))


def _place(before: int | np.ndarray, token: int | np.ndarray) -> int | np.ndarray:
    return (before * 2_654_435_761 + token * 2_246_822_519) >> 7


def _name(before: int | np.ndarray, token: int | np.ndarray) -> int | np.ndarray:
    return (before << 32) + token + 1


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
