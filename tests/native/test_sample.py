"""The compiled draw against PyTorch's: bit for bit where both round exp alike, nearly where not; rows apart; a chi-square over many seeds."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ponder.core.asks import Sampling
from ponder.engine import sampler
from ponder.engine.sampler import Draw, are_largest, draw, draw_by_torch, keep_mass
from ponder.native.build import library
from ponder.native.sample import sample_rows

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels here")


def wishes(num: int, temperature: float) -> list[Draw]:
    return [Draw(seed, 7, Sampling(temperature=temperature)) for seed in range(num)]


@pytest.mark.parametrize("size", [1, 2, 15, 128, 300, 49152])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
def test_equals_torch(size: int, temperature: float):
    logits = torch.randn(40, size, generator=torch.Generator().manual_seed(size)) * 4
    logits[3] = 1.0
    logits[4, : size // 2] = -math.inf
    found, wanted = draw(logits, wishes(40, temperature)), draw_by_torch(logits, wishes(40, temperature))
    assert sum(a.token == b.token for a, b in zip(found, wanted)) >= 39
    for a, b in zip(found, wanted):
        if a.token == b.token:
            assert a.log_p == pytest.approx(b.log_p, abs=2e-6)
            assert a.log_q == pytest.approx(b.log_q, abs=2e-6)
            assert a.certainty == pytest.approx(b.certainty, abs=1e-4) or b.certainty == math.inf


# ---- bit for bit, once PyTorch has the kernel's exp

SHAPES = [
    Sampling(temperature=t, top_k=k, top_p=p, min_p=m)
    for t in (0.0, 0.3, 1.0, 2.5) for k in (None, 1, 40, 1 << 40) for p in (1.0, 0.9, 0.3, 1e-9, 1 - 2**-53) for m in (0.0, 0.05, 0.999)
]  # fmt: skip
MOVES = [
    {}, {"logit_bias": ((3, 5.0), (0, -100.0), (1, 0.1))}, {"presence_penalty": 1.5, "frequency_penalty": 0.37},
    {"repetition_penalty": 1.3, "frequency_penalty": -0.7, "logit_bias": ((2, 100.0),)},
]  # fmt: skip
SEEN = (1, 2, 2, 0, 4, 2)


@dataclass(frozen=True)
class Allows:
    """A matcher of a form that allows some of `width` tokens."""

    tokens: tuple[int, ...]
    width: int

    @property
    def forms(self) -> "Allows":
        return self

    def allowed(self, matchers: list["Allows"]) -> torch.Tensor:
        rows = torch.zeros(len(matchers), self.width, dtype=torch.bool)
        for row, matcher in zip(rows, matchers):
            row[list(matcher.tokens)] = True
        return rows


def fused(a: np.ndarray, b: object, c: object) -> np.ndarray:
    """a b + c, rounded to float32 once: 64 bits hold the product, and all that matters of the sum."""
    return (np.longdouble(a) * np.longdouble(np.float32(b)) + np.longdouble(np.float32(c))).astype(np.float32)


def kernel_exp(x: torch.Tensor) -> torch.Tensor:
    """exp_ps of simd.hpp."""
    with np.errstate(all="ignore"):
        v = x.numpy().astype(np.float32)
        alive = v > np.float32(-87)
        v = np.where(alive, v, np.float32(0))
        n = np.rint(v * np.float32(1.44269504088896341))
        r = fused(-n, np.float32(-2.12194440e-4), fused(-n, np.float32(0.693359375), v))
        y = np.full_like(r, np.float32(1.9875691500e-4))
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            y = fused(y, r, c)
        y = fused(y, r * r, r + np.float32(1))
        return torch.from_numpy(np.where(alive, np.ldexp(y, n.astype(np.int32)), np.float32(0)))


def rows_of(size: int, seed: int) -> torch.Tensor:
    """Random, tied, coarse, infinite, steep and flat rows."""
    logits = torch.randn(8, size, generator=torch.Generator().manual_seed(seed)) * 4
    logits[1] = 1.0
    logits[2] = logits[2].round()
    logits[3, torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.7] = -math.inf
    logits[4] *= 30
    logits[5] /= 100
    logits[3, size // 2] = logits[6, size // 2] = 3.0
    logits[6, : size // 2] = -math.inf
    logits[7] = (logits[7] / 4).round() * 4 - 1000
    return logits


def unequal(size: int, monkeypatch: pytest.MonkeyPatch, every: int) -> int:
    """Draws that are not PyTorch's, of all rows and of every so many settings."""
    monkeypatch.setattr(sampler, "weigh", kernel_exp)
    rows, wrong = rows_of(size, size), 0
    matchers = (None, Allows(tuple(range(0, max(1, size - 7), 3)), max(1, size - 5)))
    for number, shape in list(enumerate(SHAPES))[size % every :: every]:
        move = random.Random(number).choice(MOVES)
        shape = replace(shape, **{k: v if not isinstance(v, tuple) else tuple(p for p in v if p[0] < size) for k, v in move.items()})
        seen = tuple(t for t in SEEN if t < size)
        wishes = [Draw(number * 8 + i, 3, shape, matchers[(i + number // 4) % 2], seen) for i in range(8)]
        for found, wanted in zip(draw(rows, wishes), draw_by_torch(rows, wishes), strict=True):
            wrong += (found.token, found.log_p, found.log_q) != (wanted.token, wanted.log_p, wanted.log_q)
    return wrong


@pytest.mark.parametrize(("size", "every"), [(1, 7), (17, 3), (128, 5), (300, 2), (2000, 7), (9000, 40)])
def test_equals_torch_bit_for_bit(size: int, every: int, monkeypatch: pytest.MonkeyPatch):
    assert unequal(size, monkeypatch, every) == 0


WRONG = {
    "the last of equals": ("are_largest", lambda values, smallest, num: are_largest(values.flip(1), smallest, num).flip(1)),
    "min_p before top_p": ("keep_mass", lambda weight, mass: keep_mass(torch.where(weight >= 0.05, weight, 0.0), mass)),
    "one more": ("keep_largest", lambda weight, smallest, num: torch.where(are_largest(weight, smallest, num + 1) & (weight > 0), weight, 0.0)),
    "another order of sums": ("block_sums", lambda values: values.view(len(values), -1, sampler.BLOCK).double().sum(-1)),
    "penalties once for each time": ("Counter", lambda seen: {token: 1 for token in seen}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_draws_are_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler, *WRONG[name])
    assert unequal(300, monkeypatch, 4) > 0


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(IndexError, match="300"):
        draw(torch.zeros(1, 300), [Draw(0, 0, Sampling(logit_bias=((300, 1.0),)))])


# ---- the kernel by itself


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(33, 5000) * 3
    together = draw(logits, wishes(33, 0.8))
    for i in range(33):
        assert draw(logits[i : i + 1].contiguous(), [Draw(i, 7, Sampling(temperature=0.8))]) == [together[i]]
    mixed = [Draw(i, 7, Sampling(temperature=0.8, top_p=0.5 if i % 2 else 1.0)) for i in range(33)]
    assert draw(logits, mixed)[::2] == together[::2]


def test_draws_follow_the_distribution():
    """Chi-square at 100,000 draws; the same draws against a slightly warmer model must fail."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, -math.inf, 1.5, -0.2]])
    num = 100_000
    probes = torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    made = sample_rows(logits.expand(num, -1).contiguous(), [1.0] * num, probes)
    assert made is not None
    counts = Counter(made[0].tolist())
    assert chi_square(counts, logits[0].softmax(-1), num) < 20.5  # 0.1 % of 5 degrees of freedom
    assert chi_square(counts, (logits[0] / 1.05).softmax(-1), num) > 20.5
    assert 4 not in counts


def chi_square(counts: Counter, wanted: torch.Tensor, num: int) -> float:
    return sum((counts[i] - num * p) ** 2 / (num * p) for i, p in enumerate(wanted.tolist()) if p)


def test_the_first_of_equals_and_never_a_token_of_no_weight():
    logits = torch.full((2, 200), -math.inf)
    logits[:, 150] = logits[:, 170] = 5.0
    assert draw(logits, wishes(2, 0.0))[0].token == 150
    for probe in (0.0, 0.4999999, 0.5, 1 - 2**-53):
        made = sample_rows(logits, [1.0, 0.5], [probe, probe])
        assert made is not None
        assert set(made[0].tolist()) <= {150, 170}
        assert (made[0][0] == 150) == (probe < 0.5)
