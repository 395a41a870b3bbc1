"""Acceptance heads: what they are, how they score, their file. Trained by `ponder train-length` (train/accept_head).

Equation   P(guess is accepted | all before it are) = sigmoid(w_out . silu(W_in z) + w_skip . z + b),
           z = [h / |h|; log q; log q of the draft so far], h the state of the guessing model that the guess was drawn from, q its
           probability there, |.| the root of the mean square
Shapes     guesses [N] -> [N] probabilities. W_in [H, D + 2], w_out [H], w_skip [D + 2]
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import Guess
from ponder.core.errors import BadField
from ponder.core.tensor_file import load_tensors, save_tensors

KIND = "ponder acceptance head 1"
TENSORS = ("w_in", "w_out", "w_skip", "bias")
FLOOR = 1e-6  # probabilities below count as this one


@dataclass(frozen=True, eq=False, kw_only=True)
class AcceptHead:
    """Tensors are float32. facts: what was measured on held-out prompts, and how it was trained."""

    drafter: str  # the drafter's spec and the target's name: whose guesses it knows
    w_in: Tensor = field(repr=False)  # [H, D + 2]
    w_out: Tensor = field(repr=False)  # [H]
    w_skip: Tensor = field(repr=False)  # [D + 2]
    bias: Tensor = field(repr=False)  # [1]
    facts: dict[str, object]

    def chances(self, drafts: Sequence[Sequence[Guess]]) -> list[float]:
        """Of each draft's last guess. Raises BadField for guesses without a state, or of another width."""
        z_NF = features(drafts)
        if z_NF.shape[1] != len(self.w_skip):
            raise BadField(
                f"guesses of width {z_NF.shape[1] - 2}: this head was trained on {self.drafter}, width {len(self.w_skip) - 2}; train another"
            )
        return scored(z_NF, (self.w_in, self.w_out, self.w_skip, self.bias)).sigmoid().tolist()


def features(drafts: Sequence[Sequence[Guess]]) -> Tensor:
    """z of each draft's last guess, float32 [N, D + 2]."""
    states = [draft[-1].hidden for draft in drafts]
    known = [state for state in states if state is not None]
    if len(known) < len(states):
        raise BadField("guesses without a hidden state: an acceptance head needs a drafter that runs a model")
    h_ND = torch.stack(known).float().cpu()
    logs = [[math.log(max(FLOOR, guess.chance)) for guess in draft] for draft in drafts]
    return torch.cat([F.normalize(h_ND) * h_ND.shape[1] ** 0.5, torch.tensor([[log[-1], math.fsum(log)] for log in logs])], 1)


def scored(z_NF: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Logits [N]."""
    w_in, w_out, w_skip, bias = weights
    return F.silu(z_NF @ w_in.T) @ w_out + z_NF @ w_skip + bias


def save_accept_head(head: AcceptHead, path: Path) -> None:
    """Writes safetensors. Raises StoreError."""
    facts = {"kind": KIND, "drafter": head.drafter, "facts": json.dumps(head.facts, sort_keys=True)}
    save_tensors({name: getattr(head, name) for name in TENSORS}, facts, path)


def load_accept_head(path: Path) -> AcceptHead:
    """Raises BadField for a file that holds no such head, StoreError for one that cannot be read."""
    mend = "name a file that `ponder train-length` wrote"
    tensors, facts = load_tensors(path, mend)
    if facts.get("kind") != KIND or set(tensors) != set(TENSORS):
        raise BadField(f"{path} holds no acceptance head; {mend}")
    width, inner = tensors["w_skip"].numel(), tensors["w_out"].numel()
    shapes = {"w_in": (inner, width), "w_out": (inner,), "w_skip": (width,), "bias": (1,)}
    if any(tuple(tensors[name].shape) != shape or not bool(torch.isfinite(tensors[name]).all()) for name, shape in shapes.items()):
        raise BadField(f"{path} is damaged (shapes or values do not fit); train the head again")
    return AcceptHead(drafter=facts["drafter"], facts=json.loads(facts["facts"]), **tensors)
