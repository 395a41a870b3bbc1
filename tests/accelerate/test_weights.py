"""Weight formats: the error they state, rows that do not depend on each other, and the file's own blocks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.accelerate.weights.dense import Bf16, Bf16Head, Float32
from ponder.accelerate.weights.int4 import GROUP, Int4, unpack
from ponder.accelerate.weights.int8 import Int8, Int8Head
from ponder.core.errors import Unsupported

FORMATS = [Float32(), Bf16(), Bf16Head(), Int8(), Int8Head(), Int4()]
ROW_COUNTS = (1, 2, 3, 5, 8, 16, 17, 33, 64, 100, 256, 511)


@dataclass(frozen=True)
class InMemory:
    """A RawTensor over a float32 matrix."""

    weight: Tensor
    name: str = "w"
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.weight[start:stop].clone()

    def blocks(self) -> np.ndarray:
        return self.weight.numpy().view(np.uint8)


@dataclass(frozen=True)
class Blocks:
    """A RawTensor that holds nothing but stored blocks."""

    stored: np.ndarray
    kind: str
    shape: tuple[int, ...]
    name: str = "w"

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        raise AssertionError("blocks that the kernel takes as they are went through float32")

    def blocks(self) -> np.ndarray:
        return self.stored


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
    """A float32 product fails it, and so does oneDNN's bfloat16 product where one row is not doubled."""
    x, w = cancelling(64, 1536)
    assert rows_depend(lambda rows: rows @ w.t(), x) != []
    assert rows_depend(lambda rows: torch.nn.functional.linear(rows, w.bfloat16()), x.bfloat16()) == [1]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_int4_takes_stored_blocks_as_they_are(kind: str):
    rng = np.random.default_rng(2)
    rows, groups = 16, 3
    header = rng.normal(size=(rows, groups, 2 if kind == "Q4_1" else 1)).astype(np.float16)
    nibbles = rng.integers(0, 256, (rows, groups, 16), dtype=np.uint8)
    stored = np.concatenate([header.view(np.uint8).reshape(rows, groups, -1), nibbles], -1).reshape(rows, -1)
    codes = np.concatenate([nibbles & 15, nibbles >> 4], -1).astype(np.float32)
    d = header[..., :1].astype(np.float32)
    wanted = torch.from_numpy(codes * d + header[..., 1:].astype(np.float32) if kind == "Q4_1" else (codes - 8) * d).reshape(rows, -1)
    packed = Int4().pack((Blocks(stored, kind, (rows, groups * GROUP)),))
    found = packed.apply(torch.eye(groups * GROUP, dtype=torch.bfloat16)).float().t()
    assert (found - wanted).abs().max() <= 2.0**-7 * wanted.abs().max()
    assert torch.equal(unpack(stored, kind)[0], torch.from_numpy(codes).reshape(rows, -1).to(torch.uint8))


def test_int4_refuses_shapes_that_the_kernel_cannot_do():
    for shape in ((16, 48), (20, 64)):
        with pytest.raises(Unsupported, match="multiple of"):
            Int4().pack((InMemory(torch.randn(shape)),))


def test_zero_rows_pack():
    for fmt in FORMATS:
        assert torch.equal(unpacked(fmt, torch.zeros(16, 32)), torch.zeros(16, 32))
