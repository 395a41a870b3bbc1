"""The mixed format: the row count chooses the kernel, both copies hold the same values, and the limit holds."""

import pytest
import torch
from torch import Tensor

from accelerate.test_weights import Blocks, InMemory, cancelling, random_blocks, rows_depend
from ponder.accelerate.weights.codes import groups
from ponder.accelerate.weights.dense import Bf16
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.mixed import SWITCH_ROWS, Mixed, MixedLinear
from ponder.core.errors import BadField


def packed(*weights: Tensor, max_bytes: int = 1 << 30) -> list[MixedLinear]:
    mixed = Mixed(few=Int4(), many=Bf16(), max_bytes=max_bytes)
    matrices = [mixed.pack((InMemory(w),)) for w in weights]
    mixed.complete(matrices)
    return matrices


@pytest.mark.parametrize("columns", [576, 1536, 4864])
def test_a_row_is_independent_on_either_side_of_the_switch(columns: int):
    x, w = cancelling(64, columns)
    (matrix,) = packed(w)
    few = lambda rows: matrix.apply(rows) if len(rows) < SWITCH_ROWS else matrix.apply(rows[: SWITCH_ROWS - 1])
    assert [n for n in rows_depend(matrix.apply, x.bfloat16()) if n >= SWITCH_ROWS] == []
    wanted = few(x.bfloat16())
    assert all(torch.equal(few(x[:n].bfloat16()), wanted[:n]) for n in range(1, SWITCH_ROWS))


def across(matrix: MixedLinear, x: Tensor, w: Tensor) -> float:
    """How far a row's results lie apart across the switch, as a part of sum |x w|."""
    many = matrix.apply(x)
    few = torch.cat([matrix.apply(x[i : i + 1]) for i in range(len(x))])
    assert matrix.many is None or not torch.equal(many, few), "the switch does nothing"
    return ((many.float() - few.float()).abs() / (x.float().abs() @ w.abs().t())).max().item()


@pytest.mark.parametrize("columns", [576, 4864])
def test_across_the_switch_only_rounding_differs(columns: int):
    x, w = cancelling(64, columns)
    (matrix,) = packed(w)
    values = torch.cat([some.dense() for some in groups((InMemory(w),))])
    assert across(matrix, x[:16].bfloat16(), values) <= 2.0**-7


def test_copies_of_other_values_would_be_seen():
    """Teeth: a copy made of the file's weights, not of the four-bit ones."""
    _, w = cancelling(64, 576)
    (matrix,) = packed(w)
    assert matrix.many is not None
    matrix.many = Bf16().pack((InMemory(w),))
    assert across(matrix, torch.eye(576, dtype=torch.bfloat16)[:16], w) > 2.0**-7


def test_copies_of_stored_blocks_hold_the_same_values():
    stored = random_blocks("Q4_K", 80, 512)
    mixed = Mixed(few=Int4(), many=Bf16())
    matrix = mixed.pack((Blocks(stored[:32], "Q4_K", (32, 512)), Blocks(stored[32:], "Q4_K", (48, 512))))
    mixed.complete([matrix])
    eye = torch.eye(512, dtype=torch.bfloat16)
    many, few = matrix.apply(eye), torch.cat([matrix.apply(eye[i : i + 4]) for i in range(0, 512, 4)])
    assert matrix.many is not None
    assert ((many.float() - few.float()).abs() <= 2.0**-8 * few.float().abs() + 1e-6).all()


def test_the_limit_is_kept_and_the_largest_come_first():
    shapes = [(64, 64), (64, 256), (64, 128), (64, 256), (64, 512)]
    weights = [torch.randn(shape) for shape in shapes]
    for max_bytes, wanted in ((1 << 30, {0, 1, 2, 3, 4}), (2 * 64 * (512 + 256 + 64), {4, 1, 0}), (2 * 64 * 64, {0}), (0, set())):
        matrices = packed(*weights, max_bytes=max_bytes)
        copied = {i for i, m in enumerate(matrices) if m.many is not None}
        assert copied == wanted
        assert sum(m.many.nbytes for m in matrices if m.many is not None) <= max_bytes
        assert all(m.nbytes == m.few.nbytes + (2 * m.num_weights if i in copied else 0) for i, m in enumerate(matrices))
        assert not any(m.parts for m in matrices), "the file is still held"


def test_without_a_copy_it_is_int4():
    w, x = torch.randn(64, 128), torch.randn(40, 128).bfloat16()
    (matrix,) = packed(w, max_bytes=0)
    assert torch.equal(matrix.apply(x), Int4().pack((InMemory(w),)).apply(x))


def test_each_model_has_the_whole_limit():
    mixed = Mixed(few=Int4(), many=Bf16(), max_bytes=2 * 64 * 64)
    mixed.pack((InMemory(torch.randn(64, 64)),))  # of a model that failed to load
    for _ in range(2):
        matrix = mixed.pack((InMemory(torch.randn(64, 64)),))
        mixed.complete([matrix])
        assert matrix.many is not None


def test_the_name_tells_results_apart():
    names = {Mixed(few=Int4(), many=Bf16(), max_bytes=b, switch_rows=s).name for b in (0, 1 << 20) for s in (5, 6)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("setting", "message"), [({"max_bytes": -1}, "max_bytes is -1"), ({"switch_rows": 1}, "switch_rows is 1; must be at least 2")]
)
def test_bad_settings_are_named(setting: dict[str, int], message: str):
    with pytest.raises(BadField, match=message):
        Mixed(few=Int4(), many=Bf16(), **setting)
