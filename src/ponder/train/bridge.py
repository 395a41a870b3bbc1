"""Bridges fitted to a model's own early and late states of the same tokens: least squares of low rank, in closed form. Seconds, one thread.

What is measured is how often the output head says the same of the bridged early state as of the late one, on prompts not fitted to.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.accelerate.draft.bridge import Bridge
from ponder.core.errors import BadField
from ponder.train.fit import split_groups

LEAST_PROMPTS = 10
CHUNK = 256  # rows whose logits are held at once


@dataclass(frozen=True, kw_only=True)
class BridgeRecipe:
    """How a bridge is fitted. Raises BadField."""

    rank: int = 128
    ridge: float = 1e-3  # of the mean square of a state's numbers: what is added to the covariance
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.ridge > 0:
            raise BadField(f"{self}: rank at least 1, ridge above 0")


@dataclass(frozen=True)
class Pairs:
    """States of one text after the first layers and after all of them, row by row."""

    prompt: str
    early_ND: Tensor
    late_ND: Tensor


def fit_bridge(
    texts: Sequence[Pairs], logits: Callable[[Tensor], Tensor], *, model_id: str, layer: int, recipe: BridgeRecipe | None = None
) -> Bridge:  # fmt: skip
    """A bridge fitted on 85 % of the prompts, measured on the others. logits: the model's output head, [N, D] -> [N, V]. Raises BadField."""
    recipe, start = recipe or BridgeRecipe(), time.perf_counter()
    parts = [[t for t in texts if t.prompt in group] for group in split_groups([t.prompt for t in texts], (0.85,), recipe.seed)]
    if len({t.prompt for t in texts}) < LEAST_PROMPTS or not all(parts):
        raise BadField(f"texts of {len({t.prompt for t in texts})} prompts: at least {LEAST_PROMPTS}, so that some can be held out")
    (early_ND, late_ND), (unseen_ND, wanted_ND) = (
        (torch.cat([t.early_ND for t in part]).float(), torch.cat([t.late_ND for t in part]).float()) for part in parts
    )
    down, up, bias = reduced_rank(early_ND, late_ND - early_ND, min(recipe.rank, early_ND.shape[1]), recipe.ridge)
    bridge = Bridge(model_id=model_id, layer=layer, down=down, up=up, bias=bias, facts={})
    kind = texts[0].late_ND.dtype
    facts: dict[str, object] = {
        "num_states": len(early_ND), "unseen_states": len(unseen_ND), "rank": bridge.rank,
        "agreement": round(agreement(bridge(unseen_ND).to(kind), wanted_ND.to(kind), logits), 4),
        "agreement_untrained": round(agreement(unseen_ND.to(kind), wanted_ND.to(kind), logits), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    return replace(bridge, facts=facts)


def reduced_rank(x_ND: Tensor, y_ND: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, b) of that rank with the least mean square of y - (x A) B - b, but for the ridge.

    Source: reduced-rank regression (Izenman 1975): the ridge solution, projected on the main directions of what it fits.
    """
    mean_x, mean_y = x_ND.mean(0), y_ND.mean(0)
    x_ND, y_ND = (x_ND - mean_x).double(), (y_ND - mean_y).double()
    covariance = x_ND.T @ x_ND / len(x_ND)
    covariance += ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    whole = torch.linalg.solve(covariance, x_ND.T @ y_ND / len(x_ND))
    _, directions = torch.linalg.eigh(whole.T @ covariance @ whole)
    best = directions[:, -rank:]
    down, up = (whole @ best).float().contiguous(), best.T.float().contiguous()
    return down, up, mean_y - (mean_x @ down) @ up


def agreement(found_ND: Tensor, wanted_ND: Tensor, logits: Callable[[Tensor], Tensor]) -> float:
    """How often the head's likeliest token is the same."""
    same = [logits(a).argmax(-1) == logits(b).argmax(-1) for a, b in zip(found_ND.split(CHUNK), wanted_ND.split(CHUNK))]
    return float(torch.cat(same).float().mean())
