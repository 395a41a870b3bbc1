"""Draws against the exact distribution; truncation against the obvious reference; sums that do not depend on the batch."""

import itertools
import math

import pytest
import torch

from ponder.core.asks import GREEDY, Sampling
from ponder.engine.sampler import Draw, LogP, draw, most_likely, pick, shaped, uniform
from ponder.testing.toy import self_certainty, transformed

SETTINGS = [
    Sampling(), Sampling(temperature=0.5), Sampling(temperature=3.0), Sampling(top_k=1), Sampling(top_k=7), Sampling(top_k=10_000),
    Sampling(top_p=0.5), Sampling(top_p=1e-9), Sampling(top_p=0.999), Sampling(min_p=0.3), Sampling(min_p=0.999),
    Sampling(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05),
]  # fmt: skip


def logits(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("vocab", [5, 128, 300])
def test_shape_equals_the_reference(sampling: Sampling, vocab: int):
    rows = logits(4, vocab)
    found = shaped(LogP(rows), torch.arange(4), sampling)[:, :vocab].double()
    for weight, row in zip(found, rows):
        wanted = torch.tensor(transformed(tuple(row.double().log_softmax(-1).tolist()), sampling), dtype=torch.float64).exp()
        assert (weight / weight.sum() - wanted).abs().max() < 1e-6


def test_equals_are_cut_by_their_id():
    tied = torch.zeros(1, 6)
    assert (shaped(LogP(tied), torch.tensor([0]), Sampling(top_k=2))[0, :6] > 0).tolist() == [True, True, False, False, False, False]
    assert (shaped(LogP(tied), torch.tensor([0]), Sampling(top_p=0.5))[0, :6] > 0).tolist() == [True, True, True, False, False, False]
    assert most_likely(tied, 3)[0] == [[0, 1, 2]]
    assert draw(tied, [Draw(0, 0, GREEDY)])[0].token == 0


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    """Standard scores that the statistic lies above its mean."""
    expected = counts.sum() * p
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(p) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_draws_have_the_exact_distribution():
    row, num = logits(1, 200, seed=3)[0] / 2, 40_000
    p = row.double().softmax(-1)
    probes = torch.tensor([uniform(seed, seed % 7) for seed in range(num)], dtype=torch.float64)
    tokens = pick(shaped(LogP(row[None]), torch.tensor([0]), Sampling()).expand(num, -1), probes)
    counts = torch.bincount(tokens, minlength=200).double()
    assert abs(chi_square(counts, p)) < 4
    wrong = torch.bincount((tokens + 1) % 200, minlength=200).double()  # the off-by-one that an inverse CDF invites
    assert chi_square(wrong, p) > 100
    tilted = (1.02 * row).double().softmax(-1)
    assert chi_square(counts, tilted) > chi_square(counts, p)


def test_positions_and_seeds_are_independent():
    grid = torch.tensor([[uniform(seed, position) for position in range(100)] for seed in range(100)], dtype=torch.float64)
    assert abs(grid.mean() - 0.5) < 0.01
    assert abs(grid.var() - 1 / 12) < 0.005
    corr = torch.corrcoef(torch.stack([grid[:, :-1].flatten(), grid[:, 1:].flatten(), grid.t()[:, :-1].flatten(), grid.t()[:, 1:].flatten()]))
    assert abs(corr[0, 1]) < 0.04
    assert abs(corr[2, 3]) < 0.04
    assert uniform(2**63 - 1, 5) != uniform(0, 5)


def test_impossible_tokens_are_never_drawn():
    weight = torch.zeros(1, 384)
    weight[0, [130, 255]] = torch.tensor([1e-30, 1e-3])
    probes = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert pick(weight.expand(4, -1).contiguous(), probes).tolist() == [130, 130, 255, 255]
    only = torch.full((1, 300), -math.inf)
    only[0, 17] = 3.0
    assert {draw(only, [Draw(seed, 0, Sampling(temperature=5.0))])[0].token for seed in range(50)} == {17}


def test_a_row_does_not_depend_on_the_others():
    rows = logits(9, 1000)
    draws = [Draw(seed, 3 * seed, SETTINGS[seed % len(SETTINGS)] if seed % 3 else GREEDY) for seed in range(9)]
    together = draw(rows, draws)
    assert together == [draw(rows[i : i + 1], draws[i : i + 1])[0] for i in range(9)]
    assert together[::-1] == draw(rows.flip(0), draws[::-1])


def test_log_probabilities():
    rows = logits(3, 300)
    log_p = rows.double().log_softmax(-1)
    sampling = Sampling(temperature=0.7, top_p=0.8)
    for drawn, row, exact in zip(draw(rows, [Draw(9, 0, sampling)] * 3), rows, log_p):
        assert drawn.log_p == pytest.approx(exact[drawn.token].item(), abs=1e-5)
        assert drawn.log_q == pytest.approx(transformed(tuple(row.double().log_softmax(-1).tolist()), sampling)[drawn.token], abs=1e-5)
        assert drawn.certainty == pytest.approx(self_certainty(exact.tolist()), abs=1e-5)
    plain = draw(rows[:1], [Draw(9, 0, Sampling())])[0]
    assert plain.log_q == plain.log_p
    assert draw(rows[:1], [Draw(9, 0, GREEDY)])[0].log_q == 0.0


def test_most_likely_is_sorted_and_whole():
    rows = logits(2, 50)
    tokens, log_p = most_likely(rows, 80)
    assert [sorted(t) for t in tokens] == [list(range(50))] * 2
    assert all(a >= b for row in log_p for a, b in itertools.pairwise(row))
    assert sum(map(math.exp, log_p[0])) == pytest.approx(1.0, abs=1e-6)
