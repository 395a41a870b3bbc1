"""Draws against the exact distribution; truncation against the obvious reference; sums that do not depend on the batch."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from ponder.core.asks import GREEDY, Sampling
from ponder.core.errors import BadField
from ponder.engine.sampler import Draw, LogP, draw, likeliest, most_likely, moved, pick, shaped, uniform
from ponder.testing.toy import penalised, self_certainty, transformed

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


@dataclass(frozen=True)
class Only:
    """A matcher that allows a fixed set of tokens of a narrower vocabulary than the logits have."""

    tokens: tuple[int, ...]
    width: int = 280

    @property
    def forms(self):
        return self

    def allowed(self, matchers):
        rows = torch.zeros(len(matchers), self.width, dtype=torch.bool)
        for row, matcher in zip(rows, matchers):
            row[list(matcher.tokens)] = True
        return rows


MOVES = [
    Sampling(logit_bias=((3, 5.0), (7, -100.0))), Sampling(presence_penalty=1.5), Sampling(frequency_penalty=0.4), Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.6, top_k=9, top_p=0.9, presence_penalty=-0.5, frequency_penalty=1.0, repetition_penalty=0.7, logit_bias=((0, 2.0),)),
]  # fmt: skip
SEEN = (3, 3, 5, 3, 250)


@pytest.mark.parametrize("sampling", [Sampling(), *MOVES])
@pytest.mark.parametrize("allowed", [None, (3, 4, 5, 17, 250), (8,)])
def test_the_proposal_equals_the_reference(sampling, allowed):
    row = logits(1, 300, seed=5)
    biased = penalised(tuple(row[0].double().tolist()), sampling, SEEN)
    wanted = transformed(tuple(x if allowed is None or v in allowed else -math.inf for v, x in enumerate(biased)), sampling)
    wish = Draw(0, 0, sampling, allowed and Only(allowed), SEEN)
    log_p = row[0].double().log_softmax(-1)
    drawn = [draw(row, [replace(wish, seed=seed)])[0] for seed in range(60)]
    for d in drawn:
        assert wanted[d.token] > -math.inf
        assert d.log_q == pytest.approx(wanted[d.token], abs=2e-5)
        assert d.log_p == pytest.approx(log_p[d.token].item(), abs=1e-5)
    assert draw(row, [replace(wish, sampling=replace(sampling, temperature=0.0))])[0].token == wanted.index(max(wanted))


def test_penalties_move_logits_as_they_say():
    row = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, logit_bias=((3, 1.0),))
    found = moved(row, [Draw(0, 0, sampling, None, (0, 1, 1))])
    assert found.tolist() == [[1.0 - 0.25 - 0.5, -2.0 - 0.5 - 0.5, 0.5, 1.0]]
    assert row.tolist() == [[2.0, -1.0, 0.5, 0.0]]


def test_only_one_token_is_certain_however_unlikely():
    row = torch.zeros(1, 300)
    row[0, 9] = 300.0
    for sampling in (Sampling(), Sampling(temperature=0.3), Sampling(top_p=0.5), GREEDY):
        (drawn,) = draw(row, [Draw(4, 0, sampling, Only((2,)))])
        assert (drawn.token, drawn.log_q) == (2, 0.0) and drawn.log_p == pytest.approx(-300.0)


def test_a_row_that_allows_nothing_disturbs_no_other():
    rows = logits(3, 300)
    wishes = [Draw(1, 0, Sampling(), Only((5, 6))), Draw(2, 0, Sampling(), Only(())), Draw(3, 0, Sampling(top_p=0.9))]
    together = draw(rows, wishes)
    assert [together[i] for i in (0, 2)] == [draw(rows[i : i + 1], wishes[i : i + 1])[0] for i in (0, 2)]
    assert all(math.isfinite(x) for x in (together[1].log_p, together[1].log_q))


def test_a_row_does_not_depend_on_moved_ones():
    rows = logits(12, 1000)
    kinds = [Sampling(), GREEDY, *MOVES, *SETTINGS[:5]]
    wishes = [
        Draw(seed, seed, kinds[seed], Only((1, 5, 77, 200)) if seed % 3 == 0 else None, SEEN if seed % 2 else (), (None, 0, 3)[seed % 3])
        for seed in range(12)
    ]
    together = draw(rows, wishes)
    assert together == [draw(rows[i : i + 1], wishes[i : i + 1])[0] for i in range(12)]
    assert together[::-1] == draw(rows.flip(0), wishes[::-1])
    assert together[1] == draw(rows[1:2], [Draw(1, 1, GREEDY)])[0]


def test_the_listed_tokens_are_the_models_own():
    row = logits(1, 300)
    exact = row[0].double().log_softmax(-1)
    (drawn,) = draw(row, [Draw(0, 0, Sampling(temperature=3.0, logit_bias=((0, 100.0),)), None, (), 5)])
    assert drawn.token == 0
    assert [t for t, _ in drawn.top] == exact.topk(5).indices.tolist()
    assert [x for _, x in drawn.top] == pytest.approx(exact.topk(5).values.tolist(), abs=1e-5)
    assert draw(row, [Draw(0, 0, Sampling(), None, (), 0)])[0].top == ()
    assert len(draw(row, [Draw(0, 0, Sampling(), None, (), 10_000)])[0].top) == 300


def test_most_likely_among_the_allowed():
    rows = logits(3, 300)
    some = Only((2, 40, 279)).allowed([Only((2, 40, 279))])[0]
    tokens, log_p = most_likely(rows, 5, [None, some, None])
    exact = rows.double().log_softmax(-1)
    assert sorted(tokens[1]) == [2, 40, 279] and log_p[1] == sorted(log_p[1], reverse=True)
    assert log_p[1] == pytest.approx(exact[1, tokens[1]].tolist(), abs=1e-5)
    plain = most_likely(rows, 5)
    assert ([tokens[0], tokens[2]], [log_p[0], log_p[2]]) == ([plain[0][0], plain[0][2]], [plain[1][0], plain[1][2]])


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": ((1, 101.0),)}, {"logit_bias": ((-1, 1.0),)}, {"logit_bias": ((1, 1.0), (1, 2.0))}, {"logit_bias": 5},
        {"logit_bias": ((1, math.nan),)}, {"logit_bias": ((1.5, 1.0),)}, {"logit_bias": ((1, 2.0, 3.0),)}, {"logit_bias": {1: 2.0}},
        {"presence_penalty": 2.1}, {"frequency_penalty": -3.0}, {"repetition_penalty": 0.0}, {"presence_penalty": math.nan},
    ],
)  # fmt: skip
def test_values_out_of_range(fields):
    (name,) = fields
    with pytest.raises(BadField, match=name):
        Sampling(**fields)


def test_one_token_has_one_probability_whoever_asks():
    """Draws of every whole kind, children and scores agree bit for bit: strategies compare them."""
    rows = logits(6, 1000, seed=9)
    kinds = [Sampling(), Sampling(temperature=0.4), GREEDY]
    for num_top in (None, 2):
        drawn = draw(rows, [Draw(seed, 0, kinds[seed % 3], None, (), num_top) for seed in range(6)])
        tokens, log_p = most_likely(rows, 1000)
        scored = LogP(rows).of(torch.arange(6), torch.tensor([d.token for d in drawn])).tolist()
        assert [d.log_p for d in drawn] == scored == [log_p[i][tokens[i].index(d.token)] for i, d in enumerate(drawn)]
        assert all(dict(d.top).get(d.token, d.log_p) == d.log_p for d in drawn)


@pytest.mark.parametrize("size", [3, 128, 700, 1024, 1100, 4000])
def test_likeliest_are_the_largest(size):
    """Found in blocks, a last one that is not full among them."""
    for num in (1, 2, 8):
        logits = torch.randn(6, size, generator=torch.Generator().manual_seed(num))
        logits[0, -1], logits[1, 0], logits[2, -3:] = 9.0, 9.0, 9.0
        found = likeliest(logits, num)
        assert torch.equal(logits.gather(1, found), logits.topk(min(num, size)).values)
