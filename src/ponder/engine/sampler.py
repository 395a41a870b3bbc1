"""Draws the next token of many rows at once. A draw is a pure function of (seed, position, the row's logits).

One uniform number per draw, a hash of (seed, position), is looked up in the cumulative distribution. Sums run over fixed
blocks of the vocabulary in a fixed order, so a row's result does not depend on the other rows or the number of threads.

Shapes: R rows, V vocabulary (padded to whole blocks with -inf), N blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.asks import Sampling

BLOCK = 128  # vocabulary entries summed together
NUM_LIKELY = 1024  # entries that top_p sorts before it falls back to sorting all
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """One row's wish."""

    seed: int
    position: int  # of the token in its completion
    sampling: Sampling


@dataclass(frozen=True)
class Drawn:
    """One row's token. log_p under the model itself, log_q under the distribution it was drawn from, both in nats."""

    token: int
    log_p: float
    log_q: float
    certainty: float  # KL(uniform || model), nats


class LogP:
    """Log-probabilities of rows of logits: exact sums, made once and read often."""

    def __init__(self, logits_RV: Tensor) -> None:
        self.vocab_size = logits_RV.shape[1]
        self.logits_RV = F.pad(logits_RV, (0, -self.vocab_size % BLOCK), value=-math.inf)
        self.top_R1 = logits_RV.amax(-1, keepdim=True)
        self.weight_RV = (self.logits_RV - self.top_R1).exp_()  # probabilities but for the sum
        self.log_sum_R = _sum(self.weight_RV).log()

    def of(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """float64 [n]: log-probability of tokens[i] in row rows[i]."""
        return (self.logits_RV[rows, tokens] - self.top_R1[rows, 0]).double() - self.log_sum_R[rows]

    def certainty(self) -> Tensor:
        """float64 [R]: KL(uniform || model) = -mean_v log p_v - log V, in nats."""
        real = self.logits_RV[:, : self.vocab_size] - self.top_R1
        mean = _sum(F.pad(real, (0, -self.vocab_size % BLOCK))) / self.vocab_size
        return self.log_sum_R - mean - math.log(self.vocab_size)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of both: two rounds of splitmix64, 53 bits."""
    x = _mix((_mix(seed & MASK) + position * 0x9E3779B97F4A7C15) & MASK)
    return (x >> 11) * 2.0**-53


def draw(logits_RV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token per row of float32 logits. Greedy rows take the most likely token, the first of equals."""
    log_p = LogP(logits_RV)
    rows = torch.arange(len(draws))
    tokens = log_p.logits_RV.argmax(-1)
    log_q = torch.zeros(len(draws), dtype=torch.float64)
    for sampling in dict.fromkeys(d.sampling for d in draws if d.sampling.temperature > 0):
        mine = torch.tensor([i for i, d in enumerate(draws) if d.sampling == sampling])
        weight = shaped(log_p, mine, sampling)
        probes = torch.tensor([uniform(draws[i].seed, draws[i].position) for i in mine.tolist()], dtype=torch.float64)
        tokens[mine] = pick(weight, probes)
        log_q[mine] = (
            log_p.of(mine, tokens[mine])
            if sampling == Sampling()
            else weight[torch.arange(len(mine)), tokens[mine]].double().log() - _sum(weight).log()
        )
    return [
        Drawn(token, p, q, c) for token, p, q, c in zip(tokens.tolist(), log_p.of(rows, tokens).tolist(), log_q.tolist(), log_p.certainty().tolist())
    ]


def shaped(log_p: LogP, rows: Tensor, sampling: Sampling) -> Tensor:
    """Unnormalised probabilities [n, V] of `rows` after temperature, top_k, top_p and min_p, in this order."""
    weight = log_p.weight_RV[rows]
    if sampling.temperature != 1.0:
        weight = ((log_p.logits_RV[rows] - log_p.top_R1[rows]) / sampling.temperature).exp_()
    if sampling.top_k is not None and sampling.top_k < log_p.vocab_size:
        likely = weight.topk(sampling.top_k).values
        weight = keep_largest(weight, likely[:, -1:], torch.full((len(rows), 1), sampling.top_k))
    if sampling.top_p < 1.0:
        weight = keep_mass(weight, sampling.top_p)
    if sampling.min_p > 0.0:
        weight = torch.where(weight >= sampling.min_p * weight.amax(-1, keepdim=True), weight, 0.0)
    return weight


def keep_mass(weight: Tensor, mass: float) -> Tensor:
    """Zeroes all but the smallest set of largest entries that holds at least `mass` of each row's sum."""
    wanted = mass * _sum(weight)[:, None]
    likely = weight.topk(min(NUM_LIKELY, weight.shape[1])).values
    if bool((_sum(likely)[:, None] < wanted).any()):
        likely = weight.sort(-1, descending=True).values
    num_kept = ((likely.double().cumsum(-1) - likely.double()) < wanted).sum(-1, keepdim=True)
    return keep_largest(weight, likely.gather(1, num_kept - 1), num_kept)


def keep_largest(weight: Tensor, smallest: Tensor, num_kept: Tensor) -> Tensor:
    """Zeroes all but the num_kept [n, 1] largest of each row, whose smallest value is `smallest` [n, 1]; first of equals."""
    return torch.where(are_largest(weight, smallest, num_kept), weight, 0.0)


def are_largest(values: Tensor, smallest: Tensor, num: Tensor) -> Tensor:
    """bool like `values`: the num [n, 1] largest of each row, of which `smallest` [n, 1] is the least; first of equals."""
    above, equal = values > smallest, values == smallest
    return above | (equal & (equal.cumsum(-1) <= num - above.sum(-1, keepdim=True)))


def pick(weight: Tensor, probes: Tensor) -> Tensor:
    """int64 [n]: the entry at which each row's running sum passes probe * total. Never one of weight zero."""
    blocks = weight.view(len(weight), -1, BLOCK)
    passed = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = probes[:, None] * passed[:, -1:]
    block = torch.searchsorted(passed, target, right=True).clamp_(max=passed.shape[1] - 1)
    block = torch.where(passed.gather(1, block) > passed.gather(1, (block - 1).clamp(min=0)) * (block > 0), block, _last_positive(passed))
    before = torch.where(block > 0, passed.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(weight)), block[:, 0]]
    at = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    last = (inside > 0).long().mul_(torch.arange(BLOCK)).amax(-1, keepdim=True)  # rounding may point past the end
    return (block * BLOCK + torch.minimum(at, last))[:, 0]


def most_likely(logits_RV: Tensor, num: int) -> tuple[list[list[int]], list[list[float]]]:
    """The `num` most likely tokens of every row, best first (lower id first among equals), and their log-probabilities."""
    log_p = LogP(logits_RV)
    num = min(num, log_p.vocab_size)
    smallest = logits_RV.topk(num).values[:, -1:]
    tokens = are_largest(logits_RV, smallest, torch.full_like(smallest, num, dtype=torch.int64)).nonzero()[:, 1].view(-1, num)
    tokens = tokens.gather(1, logits_RV.gather(1, tokens).sort(dim=-1, descending=True, stable=True).indices)
    rows = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
    return tokens.tolist(), log_p.of(rows, tokens.flatten()).view(len(tokens), -1).tolist()


def _last_positive(passed: Tensor) -> Tensor:
    """[n, 1]: the first block at which the running sum reaches its end, hence the last with any weight."""
    return torch.searchsorted(passed, passed[:, -1:].contiguous())


def _sum(values: Tensor) -> Tensor:
    """float64 sum over the last dimension, in an order that does not depend on the number of rows."""
    if values.shape[1] % BLOCK:
        values = F.pad(values, (0, -values.shape[1] % BLOCK))
    return values.view(len(values), -1, BLOCK).sum(-1, dtype=torch.float64).cumsum(-1)[:, -1]


def _mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
