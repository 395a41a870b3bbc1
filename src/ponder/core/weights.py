"""Log-weight arithmetic in float64. Every edge case of drawing from weights is handled here, once."""

import torch
from torch import Tensor

from ponder.core.errors import BadWeight, DeadParticles


def check_weights(log_w: Tensor) -> Tensor:
    """`log_w` itself. Raises BadWeight on NaN or +inf and DeadParticles when all are -inf; -inf alone is a dead particle."""
    if torch.isnan(log_w).any() or (log_w == float("inf")).any():
        bad = int(torch.nonzero(torch.isnan(log_w) | (log_w == float("inf")))[0, 0])
        raise BadWeight(f"log-weight {float(log_w[bad])} at particle {bad}: a log-weight must be finite or -inf; look at the potential that made it")
    if len(log_w) == 0 or bool((log_w == float("-inf")).all()):
        raise DeadParticles(f"all {len(log_w)} particles have weight zero; weaken the constraint or start more particles")
    return log_w


def normalize(log_w: Tensor) -> Tensor:
    """[N] unnormalised log-weights -> [N] probabilities that sum to 1. Raises as check_weights."""
    return torch.softmax(check_weights(log_w), -1)


def log_mean_exp(log_w: Tensor) -> float:
    """log of the mean weight of [N] log-weights; -inf when all are dead."""
    return float(torch.logsumexp(log_w, -1)) - float(torch.log(torch.tensor(float(len(log_w)), dtype=torch.float64)))


def ess(log_w: Tensor) -> float:
    """Effective sample size 1 / sum(W^2) of [N] log-weights, between 1 and N. Raises as check_weights."""
    return float(1.0 / (normalize(log_w) ** 2).sum())


def inverse_cdf(weights: Tensor, probes: Tensor) -> Tensor:
    """Smallest n with W_1 + ... + W_n > probe, as int64 [M]. Never an index of zero weight.

    weights [N] probabilities, probes [M] in [0, 1).
    """
    last = int(torch.nonzero(weights)[-1, 0])  # a probe that rounds up to the total lands here
    cumulative = weights.cumsum(0)
    return torch.searchsorted(cumulative, probes.contiguous(), right=True).clamp_max(last)
