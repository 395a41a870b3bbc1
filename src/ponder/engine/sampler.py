"""Draws the next token of many rows at once. A draw is a pure function of (seed, position, the row's logits, its tokens so far).

One uniform number per draw, a hash of (seed, position) and what drifts into it, is looked up in the cumulative distribution. Sums run over fixed
blocks of the vocabulary in a fixed order, so a row's result does not depend on the other rows or the number of threads. The compiled
kernel (native/sample) draws where it is there; what PyTorch draws here is equal to it bit for bit, but for the rounding of exp.

Two distributions meet here: the model's own (log_p), and the proposal that the token is drawn from (log_q): logits moved by
penalties, biases and the form's mask, then shaped by temperature and truncation, then normalised again.

Shapes: R rows, V vocabulary (padded to whole blocks with -inf), N blocks.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.asks import Sampling
from ponder.core.noise import drifted
from ponder.engine.constraint import Matcher
from ponder.native.sample import Move, sample_rows

BLOCK = 128  # vocabulary entries summed together
LANES = 16  # of them that are added at once
NUM_LIKELY = 1024  # entries that top_p sorts before it falls back to sorting all
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """One row's wish."""

    seed: int
    position: int  # of the token in its completion
    sampling: Sampling
    matcher: Matcher | None = None  # says which tokens the form allows; a row without any is drawn from as if it had none
    seen: tuple[int, ...] = ()  # tokens of the completion so far, for penalties
    num_top: int | None = None  # most likely tokens to list
    drift: tuple[tuple[int, float], ...] = ()  # (seed, share) of other noise mixed in
    forced: int | None = None  # the token, where it is not to be drawn

    @property
    def probe(self) -> float:
        return drifted(lambda seed: uniform(seed, self.position), self.seed, self.drift)

    @property
    def is_moved(self) -> bool:
        return self.matcher is not None or bool(self.sampling.logit_bias) or (bool(self.seen) and self.sampling.has_penalties)


@dataclass(frozen=True)
class Drawn:
    """One row's token. log_p under the model itself, log_q under the distribution it was drawn from, both in nats."""

    token: int
    log_p: float
    log_q: float
    certainty: float  # KL(uniform || model), nats
    top: tuple[tuple[int, float], ...] = ()  # (token, log_p), best first


class LogP:
    """Log-probabilities of rows of logits, equal for all who ask: `draw`'s, by its compiled kernel where that runs."""

    def __init__(self, logits_RV: Tensor) -> None:
        self.vocab_size = logits_RV.shape[1]
        is_whole = self.vocab_size % BLOCK == 0
        self.logits_RV = logits_RV if is_whole else F.pad(logits_RV, (0, -self.vocab_size % BLOCK), value=-math.inf)
        self.top_R1 = logits_RV.amax(-1, keepdim=True)
        made = sample_rows(logits_RV, [0.0] * len(logits_RV), [0.0] * len(logits_RV))  # of the largest, log_p = -log_sum
        self.log_sum_R = _sum(self.weight_RV).log() if made is None else torch.from_numpy(-made[1])

    @cached_property
    def weight_RV(self) -> Tensor:
        """float32 [R, V]: probabilities but for the sum."""
        return weigh(self.logits_RV - self.top_R1)

    def of(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """float64 [n]: log-probability of tokens[i] in row rows[i]."""
        return (self.logits_RV[rows, tokens] - self.top_R1[rows, 0]).double() - self.log_sum_R[rows]

    def certainty(self) -> Tensor:
        """float64 [R]: KL(uniform || model) = -mean_v log p_v - log V, in nats."""
        real = self.logits_RV[:, : self.vocab_size] - self.top_R1
        mean = _sum(F.pad(real, (0, -self.vocab_size % BLOCK))) / self.vocab_size
        return self.log_sum_R - mean - math.log(self.vocab_size)


def weigh(logits_RV: Tensor) -> Tensor:
    """exp of logits less their largest; takes their storage."""
    return logits_RV.exp_()


def scale_of(temperature: float) -> float:
    """Its inverse, rounded to float32 as the kernel rounds it."""
    return float(np.float32(1) / np.float32(temperature))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of both: two rounds of splitmix64, 53 bits."""
    x = _mix((_mix(seed & MASK) + position * 0x9E3779B97F4A7C15) & MASK)
    return (x >> 11) * 2.0**-53


def draw(logits_RV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token per row of float32 logits. Greedy rows take the most likely token, the first of equals."""
    free = [i for i, d in enumerate(draws) if d.forced is None]
    if len(free) == len(draws):
        found = draw_compiled(logits_RV, draws) or draw_by_torch(logits_RV, draws)
    else:  # what is given is looked up, beside what is drawn
        found = draw_by_torch(logits_RV, draws)
        for i, drawn in zip(free, draw_compiled(logits_RV[free], [draws[i] for i in free]) or () if free else ()):
            found[i] = drawn
    return [replace(f, top=top_of(logits_RV[i], f, d.num_top)) if d.num_top else f for i, (f, d) in enumerate(zip(found, draws, strict=True))]


def draw_compiled(logits_RV: Tensor, draws: Sequence[Draw]) -> list[Drawn] | None:
    """`draw` by the compiled kernel."""
    cuts = [(0 if (s := d.sampling).top_k is None else s.top_k, s.top_p, s.min_p) for d in draws]
    made = sample_rows(
        logits_RV,
        [d.sampling.temperature for d in draws],
        [d.probe for d in draws],
        cuts=cuts if any(cut != (0, 1.0, 0.0) for cut in cuts) else None,
        moves=moves_of(draws) if any(d.is_moved for d in draws) else None,
    )
    return None if made is None else [Drawn(*row) for row in zip(*(x.tolist() for x in made))]


def moves_of(draws: Sequence[Draw]) -> list[Move | None]:
    """What `moved` does, for the kernel."""
    allowed = allowed_of(draws)
    moves: list[Move | None] = []
    for i, d in enumerate(draws):
        s = d.sampling
        ids, biases = zip(*s.logit_bias) if s.logit_bias else (None, None)
        move = Move(
            seen=np.array(d.seen, np.int64) if s.has_penalties and d.seen else None,
            repetition=s.repetition_penalty,
            frequency=s.frequency_penalty,
            presence=s.presence_penalty,
            ids=None if ids is None else np.array(ids, np.int64),
            biases=None if biases is None else np.array(biases, np.float32),
            allowed=allowed.get(i),
        )
        moves.append(move if d.is_moved else None)
    return moves


def allowed_of(draws: Sequence[Draw]) -> dict[int, np.ndarray]:
    """bool by row: the tokens that its form allows; may be narrower than the vocabulary. A row without any has no entry."""
    formed = [i for i, d in enumerate(draws) if d.matcher is not None]
    matchers = [d.matcher for d in draws if d.matcher is not None]
    if not matchers:
        return {}
    rows = np.ascontiguousarray(matchers[0].forms.allowed(matchers).numpy())
    return {i: allowed for i, allowed in zip(formed, rows) if allowed.any()}


def draw_by_torch(logits_RV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """`draw` of any wish, by PyTorch."""
    log_p = LogP(logits_RV)
    rows = torch.arange(len(draws))
    tokens = torch.empty(len(draws), dtype=torch.int64)
    log_q = torch.zeros(len(draws), dtype=torch.float64)
    plain = torch.tensor([i for i, d in enumerate(draws) if not d.is_moved], dtype=torch.int64)
    other = torch.tensor([i for i, d in enumerate(draws) if d.is_moved], dtype=torch.int64)
    if len(plain):
        tokens[plain], log_q[plain] = drawn_from(log_p, plain, [draws[i] for i in plain.tolist()])
    if len(other):
        wishes = [draws[i] for i in other.tolist()]
        tokens[other], log_q[other] = drawn_from(LogP(moved(logits_RV[other], wishes)), torch.arange(len(other)), wishes)
    found = zip(tokens.tolist(), log_p.of(rows, tokens).tolist(), log_q.tolist(), log_p.certainty().tolist())
    return [Drawn(*row) for row in found]


def drawn_from(proposal: LogP, rows: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """(tokens [n], float64 log_q [n]): draws[i] is from row rows[i] of the proposal, once it is shaped."""
    tokens = proposal.logits_RV.argmax(-1)[rows]
    forced = torch.tensor([-1 if d.forced is None else d.forced for d in draws])
    log_q = torch.where((forced < 0) | (forced == tokens), 0.0, -math.inf).double()  # of greedy draws
    tokens = torch.where(forced < 0, tokens, forced)
    for sampling in dict.fromkeys(d.sampling for d in draws if d.sampling.temperature > 0):
        mine = torch.tensor([i for i, d in enumerate(draws) if d.sampling == sampling])
        weight = shaped(proposal, rows[mine], sampling)
        probes = torch.tensor([draws[i].probe for i in mine.tolist()], dtype=torch.float64)
        tokens[mine] = torch.where(forced[mine] < 0, pick(weight, probes), forced[mine])
        if sampling.is_shaped:
            scaled = (proposal.logits_RV[rows[mine], tokens[mine]] - proposal.top_R1[rows[mine], 0]) * scale_of(sampling.temperature)
            log_sum = [math.log(x) if x != 0 else -math.inf for x in _sum(weight).tolist()]  # the C library's, as the kernel has it
            is_cut = weight[torch.arange(len(mine)), tokens[mine]] == 0  # only a forced token may be
            log_q[mine] = torch.where(is_cut, -math.inf, scaled.double() - torch.tensor(log_sum, dtype=torch.float64))
        else:
            log_q[mine] = proposal.of(rows[mine], tokens[mine])
    return tokens, log_q


def proposal_of(logits_1V: Tensor, wish: Draw) -> Tensor:
    """float64 [V]: log of the distribution that a row's token is drawn from."""
    proposal = LogP(moved(logits_1V, [wish]) if wish.is_moved else logits_1V)
    weight = shaped(proposal, torch.zeros(1, dtype=torch.int64), wish.sampling if wish.sampling.temperature > 0 else Sampling())[0].double()
    certain = wish.forced if wish.forced is not None else int(proposal.logits_RV.argmax()) if wish.sampling.temperature == 0 else None
    if certain is not None:
        weight = F.one_hot(torch.tensor(certain), len(weight)).double()
    return (weight / weight.sum()).log()[: proposal.vocab_size]


def moved(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """float32 [R, V]: logits after penalties, biases and the form, in this order; a token that the form forbids has -inf."""
    logits_RV = logits_RV.clone()
    for row, d in zip(logits_RV, draws):
        s = d.sampling
        if s.has_penalties and d.seen:
            counts = Counter(d.seen)
            ids, num = torch.tensor(list(counts)), torch.tensor(list(counts.values()), dtype=torch.float32)
            z = row[ids]
            z = torch.where(z > 0, z / s.repetition_penalty, z * s.repetition_penalty)
            row[ids] = z - s.frequency_penalty * num - s.presence_penalty
        if s.logit_bias:
            ids, biases = zip(*s.logit_bias)
            row[list(ids)] += torch.tensor(biases)
    for i, allowed in allowed_of(draws).items():
        logits_RV[i, : len(allowed)].masked_fill_(torch.from_numpy(~allowed).to(logits_RV.device), -math.inf)
        logits_RV[i, len(allowed) :] = -math.inf
    return logits_RV


def top_of(logits_V: Tensor, drawn: Drawn, num: int) -> tuple[tuple[int, float], ...]:
    """The most likely tokens of a row and their log-probabilities, which its drawn token's tells."""
    (tokens,) = largest(logits_V[None], num)
    values = logits_V[tokens].double() - logits_V[drawn.token].double() + drawn.log_p
    return tuple(zip(tokens.tolist(), values.tolist()))


def shaped(log_p: LogP, rows: Tensor, sampling: Sampling) -> Tensor:
    """Unnormalised probabilities [n, V] of `rows` after temperature, top_k, top_p and min_p, in this order."""
    weight = log_p.weight_RV[rows]
    if sampling.temperature != 1.0:
        weight = weigh((log_p.logits_RV[rows] - log_p.top_R1[rows]) * scale_of(sampling.temperature))
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
    if bool((likely.double().cumsum(-1)[:, -1:] < wanted).any()):
        likely = weight.sort(-1, descending=True).values
    larger = F.pad(likely.double().cumsum(-1)[:, :-1], (1, 0))  # mass of the entries before each
    num_kept = (larger < wanted).sum(-1, keepdim=True)
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
    passed = block_sums(weight).cumsum(-1)
    target = probes[:, None] * passed[:, -1:]
    block = torch.searchsorted(passed, target, right=True).clamp_(max=passed.shape[1] - 1)
    block = torch.where(passed.gather(1, block) > passed.gather(1, (block - 1).clamp(min=0)) * (block > 0), block, _last_positive(passed))
    before = torch.where(block > 0, passed.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(weight)), block[:, 0]]
    at = torch.searchsorted(torch.cat([before, inside.double()], -1).cumsum(-1)[:, 1:].contiguous(), target, right=True)
    last = (inside > 0).long().mul_(torch.arange(BLOCK)).amax(-1, keepdim=True)  # rounding may point past the end
    return (block * BLOCK + torch.minimum(at, last))[:, 0]


def most_likely(logits_RV: Tensor, num: int, allowed: Sequence[Tensor | None] | None = None) -> tuple[list[list[int]], list[list[float]]]:
    """The `num` most likely tokens of every row, best first (lower id first among equals), and their log-probabilities.

    allowed: bool [V] for rows that may list only some; such a row may be shorter.
    """
    restricted = logits_RV
    if allowed is not None and any(row is not None for row in allowed):
        restricted = logits_RV.clone()
        for row, some in zip(restricted, allowed, strict=True):
            if some is not None:
                row[: len(some)].masked_fill_(~some, -math.inf)
                row[len(some) :] = -math.inf
    tokens = largest(restricted, num)
    rows = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
    values = LogP(logits_RV).of(rows, tokens.flatten()).view(tokens.shape)
    num_kept = tokens.shape[1] - restricted.gather(1, tokens).isneginf().sum(-1)
    return [t[:n] for t, n in zip(tokens.tolist(), num_kept.tolist())], [v[:n] for v, n in zip(values.tolist(), num_kept.tolist())]


def largest(logits_RV: Tensor, num: int) -> Tensor:
    """int64 [R, num]: the largest entries of each row, best first, lower ids first among equals."""
    num = min(num, logits_RV.shape[1])
    smallest = logits_RV.topk(num).values[:, -1:]
    tokens = are_largest(logits_RV, smallest, torch.full_like(smallest, num, dtype=torch.int64)).nonzero()[:, 1].view(-1, num)
    return tokens.gather(1, logits_RV.gather(1, tokens).sort(dim=-1, descending=True, stable=True).indices)


def _last_positive(passed: Tensor) -> Tensor:
    """[n, 1]: the first block at which the running sum reaches its end, hence the last with any weight."""
    return torch.searchsorted(passed, passed[:, -1:].contiguous())


def _sum(values: Tensor) -> Tensor:
    """float64 sum over the last dimension, in an order that does not depend on the number of rows."""
    if values.shape[1] % BLOCK:
        values = F.pad(values, (0, -values.shape[1] % BLOCK))
    return block_sums(values).cumsum(-1)[:, -1]


def block_sums(values: Tensor) -> Tensor:
    """float64 [n, N]: sums of blocks in float32, by LANES that are then added in halves, as vector instructions do it."""
    lanes = values.reshape(len(values), -1, BLOCK // LANES, LANES)
    total = lanes[:, :, 0]
    for i in range(1, BLOCK // LANES):
        total = total + lanes[:, :, i]
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0].double()


def _mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
