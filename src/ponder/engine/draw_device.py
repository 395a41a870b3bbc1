"""The draw where the logits are: tokens of many rows in a fixed number of tensor operations, none of which waits for the host.

The same noise as engine.sampler: one uniform number per draw, a hash of (seed, position), here in wrapping 64-bit integers. The same
sums too, block by block in float64, so that equal logits give the token that the host would draw. What comes back is one small
tensor. Wishes that move or truncate the distribution are the host's (`is_plain` says which are not).

Shapes: R rows, V vocabulary (padded to whole blocks with -inf), N blocks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.engine.sampler import BLOCK, Draw, Drawn, block_sums
from ponder.native import draw as kernels
from ponder.native import paged

GOLDEN, FIRST, SECOND = (x - (1 << 64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # of splitmix64, as signed
NUM_COLUMNS = 4  # of what `draw_rows` returns


def is_plain(wish: Draw) -> bool:
    """Whether seed and temperature alone shape the draw, and nothing but the token and its numbers is wanted."""
    s = wish.sampling
    is_own = wish.forced is None and not wish.drift
    return is_own and s.top_k is None and s.top_p >= 1.0 and s.min_p <= 0.0 and not wish.is_moved and not wish.num_top


def signed(seed: int) -> int:
    """The 64 bits of a seed as PyTorch holds them."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def uniforms(seeds_R: Tensor, positions_R: Tensor) -> Tensor:
    """float64 [R] in [0, 1): engine.sampler.uniform of int64 seeds and positions."""
    bits = _mix(_mix(seeds_R) + positions_R * GOLDEN)
    return _shifted(bits, 11).double() * 2.0**-53


def draw_rows(logits_RV: Tensor, seeds_R: Tensor, positions_R: Tensor, temperatures_R: Tensor) -> Tensor:
    """float64 [R, 4]: token, log_p, log_q and certainty of one draw per row of float32 logits; temperature 0 takes the most likely.

    By native/draw where its kernels are; what PyTorch finds here is its oracle.
    """
    by = kernels.draw_rows if paged.is_here(logits_RV.device) else draw_rows_by_torch
    return by(logits_RV, seeds_R, positions_R, temperatures_R)


def draw_rows_by_torch(logits_RV: Tensor, seeds_R: Tensor, positions_R: Tensor, temperatures_R: Tensor) -> Tensor:
    """draw_rows in tensor operations."""
    vocab_size = logits_RV.shape[1]
    if vocab_size % BLOCK:
        logits_RV = F.pad(logits_RV, (0, -vocab_size % BLOCK), value=-math.inf)
    top_R1 = logits_RV.amax(-1, keepdim=True)
    is_hot = temperatures_R > 0
    below_RV = logits_RV - top_R1
    log_sum_R = passed_by(below_RV.exp())[:, -1].log()
    scale_R = 1.0 / torch.where(is_hot, temperatures_R, 1.0).float()  # rounded as sampler.scale_of rounds it
    weight_RV = (below_RV * scale_R[:, None]).exp_()
    passed_RN = passed_by(weight_RV)
    tokens_R1 = torch.where(is_hot[:, None], pick(weight_RV, passed_RN, uniforms(seeds_R, positions_R)), logits_RV.argmax(-1, keepdim=True))
    log_p_R = below_RV.gather(1, tokens_R1)[:, 0].double() - log_sum_R
    shaped_R = (below_RV.gather(1, tokens_R1)[:, 0] * scale_R).double() - passed_RN[:, -1].log()
    log_q_R = torch.where(is_hot, torch.where(temperatures_R == 1, log_p_R, shaped_R), 0.0)
    real_RV = F.pad(below_RV[:, :vocab_size], (0, -vocab_size % BLOCK)) if vocab_size % BLOCK else below_RV
    mean_R = passed_by(real_RV)[:, -1] / vocab_size
    certainty_R = log_sum_R - mean_R - math.log(vocab_size)
    return torch.stack([tokens_R1[:, 0].double(), log_p_R, log_q_R, certainty_R], 1)


def pick(weight_RV: Tensor, passed_RN: Tensor, probes_R: Tensor) -> Tensor:
    """int64 [R, 1]: the entry at which each row's running sum passes probe * total. Never one of weight zero."""
    total_R1 = passed_RN[:, -1:]
    target_R1 = probes_R[:, None] * total_R1
    block = torch.searchsorted(passed_RN, target_R1, right=True).clamp_(max=passed_RN.shape[1] - 1)
    before = torch.where(block > 0, passed_RN.gather(1, (block - 1).clamp(min=0)), 0.0)
    last = torch.searchsorted(passed_RN, total_R1.contiguous())  # the last block with any weight
    is_full = passed_RN.gather(1, block) > before
    block = torch.where(is_full, block, last)
    before = torch.where(block > 0, passed_RN.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = torch.arange(BLOCK, device=weight_RV.device)
    inside = weight_RV.gather(1, block * BLOCK + places)
    at = torch.searchsorted(inside.double().cumsum(-1), target_R1 - before, right=True)
    end = ((inside > 0) * places).amax(-1, keepdim=True)  # rounding may point past it
    return block * BLOCK + torch.minimum(at, end)


def passed_by(values_RV: Tensor) -> Tensor:
    """float64 [R, N]: running sums over blocks."""
    return block_sums(values_RV).cumsum(-1)


def drawn_of(found_R4: Tensor) -> list[Drawn]:
    """What `draw_rows` found, on the host: the one wait of a step."""
    return [Drawn(int(token), log_p, log_q, certainty) for token, log_p, log_q, certainty in found_R4.tolist()]


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64; products of int64 wrap."""
    x = x + GOLDEN
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, num: int) -> Tensor:
    """Right by `num` bits, zeros from the left."""
    return (x >> num) & ((1 << (64 - num)) - 1)
