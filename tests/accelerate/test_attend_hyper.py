"""HyperAttention: its rule key by key, and over all samples the expectation and the variance that its card states."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from accelerate.attend_meet import meet_with, placed
from ponder.accelerate.attend.hyper import Hyper
from ponder.core.attention_plan import View
from ponder.native.build import library
from ponder.testing.laws_attend import Rows, Rule, drawn_rows, law_is_its_rule

KERNELS = [pytest.param(True, marks=pytest.mark.skipif(library() is None, reason="no compiled kernel here")), False]
PLAN = Hyper(dense=64, block=16, sample=16, bits=5)


def rows_of(num: int) -> Rows:
    return drawn_rows(torch.Generator().manual_seed(3), num, num_heads=6, num_kv_heads=2, width=32, layer=1, num_layers=2)


def gray(signs: list[bool]) -> int:
    """Rank of a code word in the list of Gray codes, by walking the list."""
    word = sum(int(s) << i for i, s in enumerate(signs))
    return next(rank for rank in range(1 << len(signs)) if rank ^ (rank >> 1) == word)


def rule_of(plan: Hyper, rows: Rows, dtype: torch.dtype) -> Rule:
    """Query by query and key by key."""
    q, k, _ = placed(rows, dtype)
    planes = torch.randn(q.shape[2], plan.bits, generator=torch.Generator().manual_seed(plan.seed)).double()
    code = lambda x: [[gray((row.double() @ planes > 0).tolist()) for row in token] for token in x]
    queries, keys = code(q), code(k)
    seen, weight = torch.zeros(6, len(rows), len(rows), dtype=torch.bool), torch.zeros(6, len(rows), len(rows))
    for i, head in itertools.product(range(len(rows)), range(6)):
        seen[head, i, i // plan.dense * plan.dense : i + 1] = True
        size = plan.dense
        while size < len(rows):
            if i // size % 2:
                first = (i // size - 1) * size
                order = sorted(range(first, first + size), key=lambda j: keys[j][head // 3])
                below = sum(keys[j][head // 3] < queries[i][head] for j in order)
                upto = sum(keys[j][head // 3] <= queries[i][head] for j in order)
                block = min((below + upto) // 2, size - 1) // plan.block
                seen[head, i, order[block * plan.block : (block + 1) * plan.block]] = True
                drawn = [order[rank] for rank in plan.draw(size, block, (rows.layer, head // 3, first))]
                seen[head, i, drawn] = True
                weight[head, i, drawn] = math.log((size - plan.block) / plan.sample)
            size *= 2
    return Rule(seen, None, weight)


@pytest.mark.parametrize("is_native", KERNELS)
def test_it_is_its_rule(is_native: bool):
    rows = rows_of(300)
    rule = rule_of(PLAN, rows, torch.bfloat16 if is_native else torch.float32)
    assert not rule.seen_HNN[0].tril().equal(torch.ones(300, 300, dtype=torch.bool).tril())
    law_is_its_rule(meet_with(is_native=is_native), PLAN, rows, rule, tolerance=0.05 if is_native else 2e-5)


class Unweighted(Hyper):
    """A sampled key stands for itself."""

    def of_half(self, view: View, first: int, num: int, last: int):
        return [replace(piece, log_weight=0.0) for piece in super().of_half(view, first, num, last)]


class Overlapping(Hyper):
    """Samples the whole half, the query's own block too."""

    def draw(self, num: int, number: int, name: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((self.seed, *name, num, number)).choice(num, self.sample, replace=False)


class NextBlock(Hyper):
    """Meets the block behind the one where its hash falls."""

    def of_half(self, view: View, first: int, num: int, last: int):
        shifted = super().of_half(view, first, num, last)
        return [replace(piece, keys=(piece.keys - first + self.block) % num + first) for piece in shifted]


@pytest.mark.parametrize("mutant", [Unweighted, Overlapping, NextBlock])
def test_a_wrong_estimator_is_found(mutant):
    rows = rows_of(200)
    wrong = mutant(dense=64, block=16, sample=16, bits=5)
    with pytest.raises(AssertionError):
        law_is_its_rule(meet_with(is_native=False), wrong, rows, rule_of(PLAN, rows, torch.float32), tolerance=2e-5)


@dataclass(frozen=True, kw_only=True)
class Given(Hyper):
    """The sample is given by the ranks outside the block."""

    ranks: tuple[int, ...]

    def draw(self, num: int, number: int, name: tuple[int, ...]) -> np.ndarray:
        found = np.array(self.ranks)
        return np.where(found >= number * self.block, found + self.block, found)


def sums_over_samples(sample: int, make=Given) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the last query's head 0 over the half before it: estimates of sum w and of sum w v[0] for all samples; each key's w outside the block."""
    rows = rows_of(128)
    q, k, v = (x.double() for x in placed(rows, torch.float32))
    weight = (q[127, 0] @ k[:64, 0].T / math.sqrt(32)).exp().numpy()
    totals, firsts, outside = [], [], np.zeros(0)
    for ranks in itertools.combinations(range(32), sample):
        plan = make(dense=64, block=32, sample=sample, bits=5, ranks=ranks)
        view = View(
            layer=1,
            num_layers=2,
            start=64,
            stop=128,
            num_prompt=128,
            num_kv_heads=2,
            is_rotary=True,
            q_NHE=q[64:].float(),
            keys=lambda a, b: k[a:b].float(),
            turned=lambda rows, positions: q[64:].float()[rows],
        )
        like, drawn = plan.of_half(view, 0, 64, 128)
        mine = [piece.keys[a:b] for piece in (like, drawn) for a, b, end in spans_of(piece) if 63 * 6 in piece.rows[end]]
        totals.append(weight[mine[0]].sum() + math.exp(drawn.log_weight) * weight[mine[1]].sum())
        firsts.append((weight * v[:64, 0, 0].numpy())[mine[0]].sum() + math.exp(drawn.log_weight) * (weight * v[:64, 0, 0].numpy())[mine[1]].sum())
        outside = np.delete(weight, mine[0])
    assert len(outside) == 32
    return np.array(totals), np.array([firsts, [(weight * v[:64, 0, 0].numpy()).sum()] * len(firsts)]), np.array([weight.sum(), *outside])


def spans_of(piece):
    ends, key_ends = [0, *piece.row_ends], [0, *piece.key_ends]
    return [(key_ends[i], key_ends[i + 1], slice(ends[i], ends[i + 1])) for i in range(len(piece.heads))]


@pytest.mark.parametrize("sample", [1, 2, 31])
def test_sums_are_unbiased_and_their_variance_is_as_stated(sample: int):
    totals, firsts, weights = sums_over_samples(sample)
    assert len(totals) == math.comb(32, sample)
    assert abs(totals.mean() - weights[0]) < 1e-9 * weights[0]
    assert abs(firsts[0].mean() - firsts[1, 0]) < 1e-9 * weights[0]
    stated = 32**2 / sample * weights[1:].var() * (1 - (sample - 1) / 31)
    assert abs(totals.var() - stated) < 1e-9 * max(stated, 1.0)


class GivenFromAll(Given):
    """Draws its ranks from the beginning of the half, wherever the block is."""

    def draw(self, num: int, number: int, name: tuple[int, ...]) -> np.ndarray:
        return np.array(self.ranks)


def test_a_biased_sample_is_found():
    totals, _, weights = sums_over_samples(1, GivenFromAll)
    assert abs(totals.mean() - weights[0]) > 1e-3 * weights[0]


def test_draws_are_uniform_outside_the_block():
    plan = Hyper(dense=64, block=32, sample=4, bits=5)
    counts = np.zeros(64)
    for seed in range(2000):
        counts[plan.draw(64, 1, (seed,))] += 1
    assert counts[32:].sum() == 0
    assert abs(counts[:32] - 250).max() < 5 * math.sqrt(250)
