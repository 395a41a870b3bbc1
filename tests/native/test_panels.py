"""The compiled choice among many vectors is PyTorch's, for any number of heads, rows, vectors and panels; of equal ones the earlier."""

import itertools
import math

import numpy as np
import pytest
import torch

from native.test_columns import G, K, filled
from ponder.core.evidence import scores_of
from ponder.engine.pages import INT8, PLAIN
from ponder.native import panels
from ponder.native.attention import open_kernel
from ponder.native.build import library
from ponder.native.panels import Level, appended, best, best_slowly, largest, largest_slowly, packed, passing, passing_slowly, unpacked
from ponder.native.row_weights import row_weights

needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")


def whole_numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Small ones, so that every product and sum is exact and many are equal."""
    return torch.randint(-2, 3, shape, generator=generator).bfloat16()


@needs_kernel
@pytest.mark.parametrize(("num", "group", "width"), [(1, 1, 16), (37, 3, 16), (200, 7, 48), (513, 4, 64), (33, 5, 2)])
@pytest.mark.parametrize("are_boxes", [False, True])
def test_the_best_are_those_of_pytorch(num: int, group: int, width: int, are_boxes: bool):
    draw = torch.Generator().manual_seed(num)
    q, rows = whole_numbers(draw, 3, group, width), whole_numbers(draw, 3, num, 2 * width if are_boxes else width)
    cuts = [0, num // 3, num]
    parts = [(packed(rows[:, a:b]), b - a) for a, b in itertools.pairwise(cuts)]
    for wanted in {1, num // 4 + 1, num - 1, num, num + 5} - {0}:
        found, slow = best(q, parts, wanted, are_boxes=are_boxes), best_slowly(q, parts, wanted, are_boxes=are_boxes)
        assert np.array_equal(found, slow), wanted
        assert found.shape == (3, min(num, wanted))
        assert (np.diff(found, axis=1) > 0).all()


@needs_kernel
def test_the_best_of_any_numbers_give_as_much_as_those_of_pytorch():
    draw = torch.Generator().manual_seed(5)
    q, rows = (torch.randn(2, n, 64, generator=draw).bfloat16() for n in (3, 700))
    given = (rows.double() @ q.double().mT).amax(2)
    found, slow = (torch.from_numpy(some(q, [(packed(rows), 700)], 90)).long() for some in (best, best_slowly))
    assert (given.gather(1, found).amin(1) - given.gather(1, slow).amin(1)).abs().max() < 1e-4
    alone = torch.from_numpy(best(q[1:], [(packed(rows[1:, :333]), 333), (packed(rows[1:, 333:]), 367)], 90)).long()
    assert torch.equal(alone, found[1:])  # whatever panels and heads there are


@needs_kernel
def test_the_largest_of_numbers_of_every_kind():
    some = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-40, -1e-40, 3.5, 3.5, -2.0, 3.4e38, -3.4e38, 0.0, 1.0, 3.5, -7.25, 1e-9, 2.0, 3.5])
    rows = torch.stack([some, some.flip(0), torch.zeros(18)])
    for num in range(1, 19):
        assert np.array_equal(largest(rows, num), largest_slowly(rows, num)), num


@needs_kernel
def test_the_later_of_equal_ones_would_be_found(monkeypatch):
    monkeypatch.setattr(panels, "largest_slowly", lambda x, num: x.shape[1] - 1 - largest_slowly(x.flip(1), num)[:, ::-1])
    q, rows = whole_numbers(torch.Generator().manual_seed(1), 2, 3, 16), whole_numbers(torch.Generator().manual_seed(2), 2, 90, 16)
    parts = [(packed(rows), 90)]
    assert not all(np.array_equal(best(q, parts, num), best_slowly(q, parts, num)) for num in range(15, 30))


def levels_of(draw: torch.Generator, num: int, num_keys: int, width: int, least: float) -> tuple[torch.Tensor, Level]:
    labels = torch.randint(0, num, (2, num_keys), generator=draw).int()
    sizes = torch.zeros(2, num).scatter_add_(1, labels.long(), torch.ones(2, num_keys))
    vectors = packed(torch.randn(2, num, width, generator=draw).bfloat16())
    return labels, Level(panel=(vectors, num), sizes=sizes, log_sizes=sizes.log(), least=least)


@needs_kernel
@pytest.mark.parametrize(("num", "num_keys", "width"), [(1, 9, 16), (40, 300, 64), (75, 1000, 48)])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_the_groups_that_pass_are_those_of_pytorch(num: int, num_keys: int, width: int, is_coarse: bool):
    draw = torch.Generator().manual_seed(num)
    labels, fine = levels_of(draw, num, num_keys, width, 0.7 / num_keys)
    q, coarse = torch.randn(2, 3, width, generator=draw).bfloat16(), None
    if is_coarse:
        above, coarse = levels_of(draw, num // 5 + 1, num, width, 0.5 / num_keys)
        sizes = torch.zeros_like(coarse.sizes).scatter_add_(1, above.long(), fine.sizes)
        coarse = Level(panel=coarse.panel, sizes=sizes, log_sizes=sizes.log(), least=coarse.least)
        fine = Level(panel=fine.panel, sizes=fine.sizes, log_sizes=fine.log_sizes, least=fine.least, above=above)
    (keys, ends), slow = passing(q, labels, fine, coarse, then=range(num_keys, num_keys + 3)), passing_slowly(q, labels, fine, coarse)
    found = [some[:-3] for some in np.split(keys, ends[:-1])]
    assert ends[-1] == len(keys)
    for a, b in zip(found, slow, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(keys[ends[0] - 3 : ends[0]], np.arange(num_keys, num_keys + 3))
    assert num == 1 or any(0 < len(x) < num_keys for x in found)
    wrong = passing_slowly(q, labels.roll(1, 1), fine, coarse)  # a mutant that the law must find: labels one off
    assert num == 1 or any(not np.array_equal(a, b) for a, b in zip(found, wrong, strict=True))


def test_vectors_come_back_from_a_panel_however_they_came_into_it():
    rows = torch.randn(3, 77, 10)
    panel = packed(rows[:, :5]), 5
    for stop in (6, 16, 17, 50, 77):
        panel = appended(panel, rows[:, panel[1] : stop])
        assert torch.equal(unpacked(panel), rows[:, :stop])


@needs_kernel
@pytest.mark.parametrize(("width", "softcap", "kv"), [(16, None, PLAIN), (48, None, INT8), (64, 20.0, PLAIN), (128, None, INT8)])
def test_the_weights_of_a_row_are_those_of_pytorch(width: int, softcap: float | None, kv):
    torch.manual_seed(width)
    pool, sequence = filled(150, width, kv)
    kernel = open_kernel(pool.keys, pool.values, pool.positions, pool.scales)
    assert kernel is not None
    q = torch.randn(K * G, width).bfloat16()
    keys = pool.read_keys(torch.from_numpy(sequence.table[0].astype(np.int64)))[:, :150]
    for num in (1, 15, 16, 64, 65, 149, 150):
        found = row_weights(kernel, sequence.table[0], num, q, softcap=softcap or 0.0)
        positions, at = torch.arange(num).expand(K, num), torch.tensor([num - 1])
        slow = scores_of(q[None], keys[:, :num], positions, at, softcap=softcap).softmax(-1).sum((1, 2))
        assert found.shape == slow.shape
        assert (found - slow).abs().max() < (3e-3 if kv.is_scaled else 2e-5)
        assert (found.sum(1) - G).abs().max() < 1e-4
