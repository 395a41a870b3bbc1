"""The compiled draw against PyTorch's: same tokens but for rounding, same numbers; rows apart; a chi-square over many seeds."""

import math
from collections import Counter

import pytest
import torch

from ponder.core.asks import Sampling
from ponder.engine.sampler import Draw, draw, draw_by_torch
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
