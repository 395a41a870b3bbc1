"""Fits a head to labelled states: early stopping and calibration on held-out questions. Minutes at most, one thread.

Splits are by question. States of one question resemble each other, so that a split by state would let a head that has only
memorised questions look good (law_splits_by_question).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.rng import hash_seed
from ponder.verify.heads import Head

BATCH = 256


@dataclass(frozen=True)
class States:
    """Labelled hidden states: row i came from question group[i]."""

    hidden_ND: Tensor  # float32
    labels: tuple[bool, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.hidden_ND) == len(self.labels) == len(self.groups):
            raise BadField(f"{len(self.hidden_ND)} states, {len(self.labels)} labels, {len(self.groups)} questions: must be as many")

    def of(self, groups: set[str]) -> "States":
        """The rows of those questions."""
        kept = [i for i, group in enumerate(self.groups) if group in groups]
        return States(self.hidden_ND[kept], tuple(self.labels[i] for i in kept), tuple(self.groups[i] for i in kept))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a head is fitted. Raises BadField."""

    hidden: int = 32  # units of the inner layer; 0: a linear head
    rate: float = 3e-3  # of AdamW
    decay: float = 0.1  # weight decay
    max_epochs: int = 60
    patience: int = 8  # epochs without a better held-out loss
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.max_epochs < 1 or self.patience < 1 or not self.rate > 0 or not self.decay >= 0:
            raise BadField(f"{self}: hidden and decay at least 0, epochs and patience at least 1, rate above 0")


def split_groups(groups: Sequence[str], shares: Sequence[float], seed: int) -> list[set[str]]:
    """Questions in parts of those shares, by the hash of each; no question in two parts."""
    order = sorted(set(groups), key=lambda group: hash_seed("head", seed, group))
    bounds = [round(len(order) * sum(shares[:i])) for i in range(len(shares) + 1)] + [len(order)]
    return [set(order[a:b]) for a, b in itertools.pairwise(bounds)]


def fit_head(states: States, *, model_id: str, place: str, recipe: Recipe | None = None) -> Head:
    """A head fitted on 70 % of the questions, stopped on 15 %, calibrated on both held-out parts.

    Raises BadField where a part lacks right or wrong states: more questions or samples are needed.
    """
    recipe = recipe or Recipe()
    parts = [states.of(groups) for groups in split_groups(states.groups, (0.7, 0.15), recipe.seed)]
    for part, use in zip(parts, ("train on", "stop on", "calibrate on")):
        if len(set(part.labels)) < 2:
            raise BadField(
                f"{len(part.labels)} states to {use}, {sum(part.labels)} right: needs right and wrong ones; take more questions or samples"
            )
    train, stop, calibrate = parts
    mean, scale = train.hidden_ND.mean(0), train.hidden_ND.std(0).clamp_min(1e-6)
    width = len(mean)
    blank = Head(
        model_id=model_id, place=place, mean=mean, scale=scale, w_in=torch.zeros(width, recipe.hidden), w_out=torch.zeros(recipe.hidden),
        w_skip=torch.zeros(width), bias=torch.zeros(1), slope=torch.ones(1).double(), offset=torch.zeros(1).double(), facts={},
    )  # fmt: skip
    with torch.inference_mode(False), torch.enable_grad():
        head, num_epochs = descend(blank, train, stop, recipe)
    held_out = states.of(set(stop.groups) | set(calibrate.groups))
    slope, offset = platt(head.logits(held_out.hidden_ND), held_out.labels)
    facts: dict[str, object] = {
        "num_states": len(states.labels),
        "num_questions": len(set(states.groups)),
        "num_epochs": num_epochs,
        "hidden": recipe.hidden,
    }
    return replace(head, slope=slope, offset=offset, facts=facts)


def descend(head: Head, train: States, stop: States, recipe: Recipe) -> tuple[Head, int]:
    """AdamW on the log loss until the held-out loss stops falling; the best head and the number of epochs."""
    draws = torch.Generator().manual_seed(recipe.seed)
    start = torch.randn(head.w_in.shape, generator=draws) / math.sqrt(len(head.w_in))
    weights = [start, head.w_out.clone(), head.w_skip.clone(), head.bias.clone()]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.decay)
    x_ND, y_N = (train.hidden_ND - head.mean) / head.scale, torch.tensor(train.labels, dtype=torch.float32)
    held_ND, held_N = (stop.hidden_ND - head.mean) / head.scale, torch.tensor(stop.labels, dtype=torch.float32)
    best, best_loss, best_epoch, epoch = [w.detach().clone() for w in weights], math.inf, 0, 0
    while epoch < recipe.max_epochs and epoch - best_epoch < recipe.patience:
        epoch += 1
        for rows in torch.randperm(len(x_ND), generator=draws).split(BATCH):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(raw(x_ND[rows], weights), y_N[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(F.binary_cross_entropy_with_logits(raw(held_ND, weights), held_N))
        if loss < best_loss:
            best, best_loss, best_epoch = [w.detach().clone() for w in weights], loss, epoch
    return replace(head, w_in=best[0], w_out=best[1], w_skip=best[2], bias=best[3]), epoch


def raw(z_ND: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Logits [N] of normalised states, by plain products: what Head.logits computes row by row."""
    w_in, w_out, w_skip, bias = weights
    return (z_ND @ w_in).relu() @ w_out + z_ND @ w_skip + bias


def platt(logits: Tensor, labels: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """(slope, offset) of the likeliest sigmoid(slope * logit + offset), by Newton's method; the slope stays above 0.

    Source: Platt 1999, with targets (right + 1) / (right + 2) and 1 / (wrong + 2), so that no verdict is certain.
    """
    num_right = sum(labels)
    y_N = torch.where(torch.tensor(labels), (num_right + 1) / (num_right + 2), 1 / (len(labels) - num_right + 2)).double()
    x_N2 = torch.stack([logits, torch.ones_like(logits)], 1)
    w_2 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(100):
        p_N = torch.sigmoid(x_N2 @ w_2)
        gradient = x_N2.T @ (p_N - y_N)
        curvature = (x_N2 * (p_N * (1 - p_N))[:, None]).T @ x_N2 + 1e-6 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        w_2 = w_2 - step / max(1.0, float(step.abs().max()))  # at most 1 at a time: far from the optimum the model is no parabola
        if float(step.abs().max()) < 1e-9:
            break
    return w_2[:1].clamp_min(1e-3), w_2[1:]
