"""Laws of the Resampler role. A law takes a resampler and raises AssertionError saying what it found."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ponder.core.errors import BadWeight, DeadParticles
from ponder.core.particles import as_log_weights
from ponder.core.rng import EnumeratingRng, TorchRng, enumerate_paths
from ponder.core.roles import Resampler
from ponder.core.weights import inverse_cdf, normalize
from ponder.testing.exact import TOLERANCE, require

DEAD = -math.inf
LOG_WEIGHTS: tuple[tuple[float, ...], ...] = (
    (DEAD, math.log(0.5), math.log(0.25), DEAD, math.log(0.25), DEAD),  # dead at both ends and inside; whole shares at num = 4
    (math.log(0.5), math.log(0.3), math.log(0.2)),
    (0.0, 0.0, 0.0),
    (-1000.0, -1001.0, -1002.5),
    (700.0, 0.0, 700.5),
    (DEAD, 3.0, DEAD),
    (0.0,),
)


class EdgeRng:
    """Every uniform draw is `u`, every categorical one the first or last possible index."""

    def __init__(self, u: float) -> None:
        self.u = u

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        return torch.full((len(cuts),), self.u, dtype=torch.float64)

    def categorical(self, log_p: Tensor) -> Tensor:
        return torch.stack([inverse_cdf(row, torch.tensor([self.u], dtype=torch.float64))[0] for row in torch.softmax(log_p.double(), -1)])

    def seed(self, *path: int) -> int:
        return 0

    def fork(self, *path: int) -> "EdgeRng":
        return self


class CellRng(EdgeRng):
    """Remembers the cuts and moves every draw to a random place of the cell that `u` falls in."""

    def __init__(self, u: float, spread: Sequence[float]) -> None:
        super().__init__(u)
        self.spread = iter(spread)

    def uniform(self, cuts: Sequence[Tensor]) -> Tensor:
        draws = []
        for points in cuts:
            inside = [0.0, *sorted(float(p) for p in points if 0 < p < 1), 1.0]
            low = max(p for p in inside if p <= self.u)
            high = min(p for p in inside if p > self.u)
            draws.append(low + (0.01 + 0.98 * next(self.spread)) * (high - low))
        return torch.tensor(draws, dtype=torch.float64)


def law_shape_and_range(resample: Resampler) -> None:
    """Ancestors are int64 [num] in 0 .. N-1, for num below, at and above N."""
    for log_w in LOG_WEIGHTS:
        for num in (1, 2, 7, 100):
            ancestors = resample(as_log_weights(log_w), num, TorchRng(num))
            require(ancestors.shape == (num,) and ancestors.dtype == torch.int64, f"{tuple(ancestors.shape)} {ancestors.dtype} for num={num}")
            require(int(ancestors.min()) >= 0 and int(ancestors.max()) < len(log_w), f"index out of range: {ancestors.tolist()}")


def law_never_picks_the_dead(resample: Resampler) -> None:
    """log_w_n = -inf implies count_n = 0, also at the two extreme draws."""
    for log_w in LOG_WEIGHTS:
        for rng in (EdgeRng(0.0), EdgeRng(math.nextafter(1.0, 0.0)), TorchRng(0)):
            picked = as_log_weights(log_w)[resample(as_log_weights(log_w), 1000, rng)]
            require(bool(torch.isfinite(picked).all()), f"picked a dead particle of {log_w} with {type(rng).__name__}")


def law_unbiased(resample: Resampler) -> None:
    """E count_n = num W_n, exactly, over every random path."""
    for log_w in LOG_WEIGHTS[:-2]:
        weights = normalize(as_log_weights(log_w))
        for num in (1, 2, 4):
            counts = sum(
                (p * torch.bincount(a, minlength=len(log_w)).double() for a, p in every(resample, log_w, num)), torch.zeros(len(log_w)).double()
            )
            error = float((counts - num * weights).abs().max())
            require(error <= TOLERANCE, f"E counts {counts.tolist()}, wanted {(num * weights).tolist()}: off by {error:.1e} at num={num}")


def every(resample: Resampler, log_w: Sequence[float], num: int) -> list[tuple[Tensor, float]]:
    def program(rng: EnumeratingRng) -> Tensor:
        return resample(as_log_weights(log_w), num, rng)

    return list(enumerate_paths(program))


def law_ignores_a_common_factor(resample: Resampler) -> None:
    """Adding a constant to every log-weight changes nothing."""
    for log_w in LOG_WEIGHTS[:3]:
        plain, shifted = (resample(as_log_weights(log_w) + c, 8, TorchRng(5)) for c in (0.0, -3.0))
        require(plain.tolist() == shifted.tolist(), f"{plain.tolist()} became {shifted.tolist()} when every weight was divided by e^3")


def law_uses_only_its_rng(resample: Resampler) -> None:
    """Equal rngs give equal ancestors; the global generator is neither read nor moved."""
    log_w = as_log_weights(LOG_WEIGHTS[0])
    before = torch.get_rng_state()
    first = [resample(log_w, 5, TorchRng(key)).tolist() for key in range(20)]
    require(bool((torch.get_rng_state() == before).all()), "moved torch's global generator")
    require(first == [resample(log_w, 5, TorchRng(key)).tolist() for key in range(20)], "equal rngs gave different ancestors")
    require(len({tuple(a) for a in first}) > 1, "twenty different rngs all gave the same ancestors")


def law_cuts_are_honest(resample: Resampler) -> None:
    """The result depends on a uniform draw only through the cell between two of its cuts: what enumeration relies on."""
    spread = [0.0, 0.93, 0.31, 0.77, 0.12, 0.5, 1.0, 0.64]
    for log_w in LOG_WEIGHTS[:5]:
        for u in (0.05, 0.3, 0.55, 0.8, 0.99):
            results = [resample(as_log_weights(log_w), 4, CellRng(u, spread[i:] + spread)).tolist() for i in range(4)]
            require(results.count(results[0]) == len(results), f"draws in one cell of the cuts gave {results} for {log_w}")


def law_refuses_bad_weights(resample: Resampler) -> None:
    """All dead raises DeadParticles, NaN raises BadWeight."""
    for log_w, error in (((DEAD, DEAD), DeadParticles), ((0.0, math.nan), BadWeight), ((0.0, math.inf), BadWeight)):
        try:
            picked = resample(as_log_weights(log_w), 2, TorchRng(0))
        except error:
            continue
        raise AssertionError(f"picked {picked.tolist()} from log-weights {log_w}: expected {error.__name__}")


def law_leaves_its_input(resample: Resampler) -> None:
    """log_w is not modified."""
    log_w = as_log_weights(LOG_WEIGHTS[0])
    resample(log_w, 5, TorchRng(0))
    require(log_w.tolist() == list(LOG_WEIGHTS[0]), f"log_w became {log_w.tolist()}")


def law_counts_are_floor_or_ceil(resample: Resampler) -> None:
    """Every count is floor or ceil of num W_n. Only for those that claim it."""
    for log_w in LOG_WEIGHTS[:5]:
        share = 4 * normalize(as_log_weights(log_w))
        for ancestors, _ in every(resample, log_w, 4):
            off = (torch.bincount(ancestors, minlength=len(log_w)) - share).abs().max()
            require(float(off) < 1 + 1e-9, f"{ancestors.tolist()} for shares {share.tolist()}")


def law_variance_at_most_multinomial(resample: Resampler) -> None:
    """Var count_n <= num W_n (1 - W_n), exactly. Only for those that claim it."""
    for log_w in LOG_WEIGHTS[:5]:
        weights = normalize(as_log_weights(log_w))
        square = sum((p * torch.bincount(a, minlength=len(log_w)).double() ** 2 for a, p in every(resample, log_w, 3)), torch.zeros(len(log_w)))
        excess = (square - (3 * weights) ** 2 - 3 * weights * (1 - weights)).max()
        require(float(excess) <= TOLERANCE, f"variance above multinomial's by {float(excess):.1e} for weights {weights.tolist()}")


LAWS: tuple[Callable[[Resampler], None], ...] = (
    law_shape_and_range,
    law_never_picks_the_dead,
    law_unbiased,
    law_ignores_a_common_factor,
    law_uses_only_its_rng,
    law_cuts_are_honest,
    law_refuses_bad_weights,
    law_leaves_its_input,
)
