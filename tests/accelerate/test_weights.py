"""Weight formats: the error they state, rows that do not depend on each other, and the file's own blocks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.accelerate.weights.codes import GROUP, MAX_VALUES, spans, stored_groups
from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.accelerate.weights.int4 import Int4, interleaved
from ponder.accelerate.weights.int8 import Int8, Int8Head
from ponder.accelerate.weights.int8_dynamic import Int8Dynamic
from ponder.core.errors import Unsupported
from ponder.models.dequantize import KINDS, dequantize
from ponder.testing.in_memory import InMemory

FORMATS = [Float32(), Bf16(), Bf16Head(), Int8(), Int8Dynamic(), Int8Head(), Int4()]
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 128, 256, 511)


@dataclass(frozen=True)
class Blocks:
    """A RawTensor that holds nothing but stored blocks."""

    stored: np.ndarray
    kind: str
    shape: tuple[int, ...]
    name: str = "w"

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        raise AssertionError("blocks that the kernel takes as they are went through float32")

    def blocks(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.stored[start:stop]


def dtype_of(fmt: object) -> torch.dtype:
    return torch.float32 if isinstance(fmt, Float32) else torch.bfloat16


def unpacked(fmt: object, weight: Tensor) -> Tensor:
    """What a packed matrix multiplies with: its product with the identity."""
    return fmt.pack((InMemory(weight),)).apply(torch.eye(weight.shape[1], dtype=dtype_of(fmt))).float().t()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_error_is_as_stated(fmt: object):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1e-3
    weight[4, 7] = 5.0
    worst = ((unpacked(fmt, weight) - weight).abs().amax(1) / weight.abs().amax(1)).max().item()
    assert worst <= fmt.error
    assert fmt.error == 0 or worst > fmt.error / 8, "the stated error is far from the measured one"


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_parts_are_stacked(fmt: object):
    a, b = torch.randn(32, 64), torch.randn(16, 64)
    x = torch.randn(3, 64).to(dtype_of(fmt))
    whole = fmt.pack((InMemory(a), InMemory(b))).apply(x)
    assert torch.equal(whole, torch.cat([fmt.pack((InMemory(w),)).apply(x) for w in (a, b)], 1))
    assert fmt.pack((InMemory(a),)).nbytes < 32 * 64 * 4 + 1


def cancelling(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(x, w) whose exact products are zero, so that all that is seen of x w^T is the order of its sums."""
    rng = torch.Generator().manual_seed(1)
    order = torch.randperm(columns, generator=rng)
    x = torch.randn(512, columns // 2, generator=rng).repeat(1, 2)[:, order]
    w = torch.randn(rows, columns // 2, generator=rng).bfloat16().float()
    return x, torch.cat([w, -w], 1)[:, order]


def rows_depend(apply, x: Tensor) -> list[int]:
    """Row counts at which the first rows come out otherwise than among 512."""
    wanted = apply(x)[:16]
    return [n for n in ROW_COUNTS if not torch.equal(apply(x[:n])[:16], wanted[:n])]


@pytest.mark.parametrize("fmt", FORMATS[1:], ids=lambda f: f.name)
@pytest.mark.parametrize("columns", [576, 1536, 4864])
def test_rows_do_not_depend_on_each_other(fmt: object, columns: int):
    x, w = cancelling(64, columns)
    assert rows_depend(fmt.pack((InMemory(w),)).apply, x.bfloat16()) == []


def test_the_row_law_has_teeth():
    """A float32 product fails it, and so does oneDNN's bfloat16 product: for one row, and with matrix registers for more than 32."""
    x, w = cancelling(64, 1536)
    assert rows_depend(lambda rows: rows @ w.t(), x) != []
    assert rows_depend(lambda rows: torch.nn.functional.linear(rows, w.bfloat16()), x.bfloat16()) != []


def random_blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """uint8 [rows, bytes per row] of random codes under scales and minima of ordinary size."""
    rng, storage = np.random.default_rng(2), KINDS[kind]
    stored = rng.integers(0, 256, (rows * columns // storage.values, storage.nbytes), dtype=np.uint8)
    num_halves = 1 if kind == "Q4_0" else 2
    stored[:, : 2 * num_halves] = rng.uniform(0.01, 0.02, (len(stored), num_halves)).astype(np.float16).view(np.uint8)
    return stored.reshape(rows, -1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_int4_takes_stored_blocks_as_they_are(kind: str):
    """The file's weights but for bfloat16 in scales and zeros; `Blocks` has no float32 to offer."""
    stored = random_blocks(kind, 80, 512)
    wanted = torch.from_numpy(dequantize(KINDS[kind], stored))
    packed = Int4().pack((Blocks(stored, kind, (80, 512)),))
    found = packed.apply(torch.eye(512, dtype=torch.bfloat16)).float().t()
    grouped = lambda w: w.view(80, -1, GROUP)
    largest = grouped(wanted).abs().amax(-1, keepdim=True)
    assert ((grouped(found) - grouped(wanted)).abs() <= 2.0**-7 * largest + 2.0**-9 * 15 * 0.02).all()
    groups = stored_groups(stored, kind)
    shift = grouped(wanted) - grouped(groups.codes).float() * groups.scales.float()[..., None]
    assert (shift.amax(-1) - shift.amin(-1)).max() <= 15 * 2.0**-8 * groups.scales.float().max(), "codes are not the file's"


def test_swapped_nibbles_are_not_the_stored_blocks():
    stored = random_blocks("Q4_K", 16, 256)
    swapped = stored.reshape(-1, 144).copy()
    swapped[:, 16:] = swapped[:, 16:] >> 4 | swapped[:, 16:] << 4
    wanted = torch.from_numpy(dequantize(KINDS["Q4_K"], stored))
    near, far = ((stored_groups(raw.reshape(16, -1), "Q4_K").dense() - wanted).abs().max() / wanted.abs().max() for raw in (stored, swapped))
    assert near < 0.01 < 0.5 < far


@pytest.mark.parametrize("rows", [16, 80, 4096 + 48])
def test_the_kernels_layout_may_be_made_in_steps(rows: int):
    codes = torch.randint(0, 16, (rows, 512), dtype=torch.uint8)
    assert rows < 4000 or rows * 512 > MAX_VALUES, "no second step"
    assert torch.equal(interleaved(codes), torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1))


@pytest.mark.parametrize("shape", [(1, 32), (7, 1 << 21), (5000, 640)])
def test_spans_cover_all_rows_once_and_stay_small(shape: tuple[int, int]):
    part = Blocks(np.empty(0), "F32", shape)
    found = list(spans(part))
    assert [row for start, stop in found for row in range(start, stop)] == list(range(shape[0]))
    assert all((stop - start) * shape[1] <= MAX_VALUES or stop - start == 1 for start, stop in found)


def test_int4_refuses_shapes_that_the_kernel_cannot_do():
    for shape in ((16, 48), (20, 64)):
        with pytest.raises(Unsupported, match="multiple of"):
            Int4().pack((InMemory(torch.randn(shape)),))


def test_zero_rows_pack():
    for fmt in FORMATS:
        assert torch.equal(unpacked(fmt, torch.zeros(16, 32)), torch.zeros(16, 32))
