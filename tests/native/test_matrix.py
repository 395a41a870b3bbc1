"""The compiled products: equal to the same arithmetic in PyTorch, close to the weights, each row for itself."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from native.stored_tensors import Stored, stored
from ponder.core.errors import BadField
from ponder.models.dequantize import KINDS
from ponder.native.build import library
from ponder.native.codes import GROUP, codes_of, halves, row_chunks, row_scales, stored_bits
from ponder.native.matrix import NativeLinear, pack_linear

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels here")

KIND_NAMES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")
MODES = [(kind, bits) for kind in ("F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0") for bits in (4, 5, 8)]
ADDED = {4: 1 / 15 + 0.003, 5: 1 / 31 + 0.003, 8: 1 / 254 + 0.0003}  # of a row's largest weight, where codes are made here
ROUNDED = 0.001  # the same, where they are stored: scales and minima of K kinds rounded to float16


def activations(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Rows of different sizes with a few large values."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=rng) * torch.logspace(-2, 2, rows)[:, None]
    x[:, :: max(1, columns // 5)] *= 20
    return x


def oracle(part: Stored, bits: int, x: Tensor) -> Tensor:
    """float64 [rows, out]: quantised rows times codes, group by group. The codes of x are made in float32, as the kernel makes them."""
    ((_, found),) = codes_of(part, bits)
    groups = found.scales.shape[1]
    x = torch.nn.functional.pad(x.float(), (0, groups * GROUP - x.shape[1])).view(len(x), groups, GROUP)
    top = x.abs().amax(-1, keepdim=True)
    x_codes = (x * torch.where(top > 0, 127 / top, 0)).round().double()
    x_scales = (top / 127).double()
    largest = found.scales if found.minima is None else np.maximum(np.abs(found.scales), np.abs(found.minima))
    powers = row_scales(np.abs(largest))
    zero = 1 << bits - 1 if found.minima is None else 0
    codes = torch.from_numpy(found.codes.astype(np.float64)).view(-1, groups, GROUP) - zero
    scales = torch.from_numpy(halves(found.scales, powers)).double()
    y = torch.einsum("rgi,ogi,rg,og->ro", x_codes, codes, x_scales[..., 0], scales)
    if found.minima is not None:
        y += torch.einsum("rg,og->ro", x_codes.sum(-1) * x_scales[..., 0], torch.from_numpy(halves(found.minima, powers)).double())
    return y


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value of its row."""
    return ((found.double() - wanted.double()).abs().amax(1) / wanted.double().abs().amax(1).clamp(min=1e-30)).max().item()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take milliseconds a call where other programs run: only some calls have them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "bits"), MODES)
def test_equals_the_same_arithmetic_in_pytorch(kind: str, bits: int):
    part, x = stored(kind, 40, 96), activations(11, 96)
    assert apart(pack_linear((part,), (bits,), torch.float32).apply(x), oracle(part, bits, x)) < 1e-5


def test_the_oracle_has_teeth():
    """Activations rounded down, or a minimum that is forgotten, are seen."""
    part, x = stored("Q4_1", 40, 96), activations(11, 96)
    found = pack_linear((part,), (4,), torch.float32)
    assert apart(found.apply(x * 0.999), oracle(part, 4, x)) > 1e-4
    found.parts[0].scales[:, :, 1] = 0
    assert apart(found.apply(x), oracle(part, 4, x)) > 1e-4


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("bits", [4, 5, 8, None])
def test_weights_are_as_stored_within_the_stated_error(kind: str, bits: int | None):
    part, bits = stored(kind, 36, 512), bits or stored_bits(kind)
    weight = part.dense()
    found = pack_linear((part,), (bits,), torch.float32).apply(torch.eye(512)).t()
    is_as_it_is = KINDS[kind].values > 1 and kind != "Q6_K" and stored_bits(kind) <= bits
    error = 0.0 if kind in ("Q4_0", "Q5_0", "Q8_0") else ROUNDED if kind.endswith("K") else 0.0
    assert apart(found, weight) < (error + 1e-6 if is_as_it_is else ADDED[bits])


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("bits", [4, 8])
def test_any_size_of_weights(scale: float, bits: int):
    weight = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32) * np.float32(scale)
    found = pack_linear((Stored(weight.view(np.uint8), "F32", (16, 64)),), (bits,), torch.float32).apply(torch.eye(64)).t()
    assert apart(found / scale, torch.from_numpy(weight / np.float32(scale))) < ADDED[bits]


def cancelling(rows: int, columns: int) -> tuple[Tensor, Stored]:
    """(x, w) whose exact products are near zero, so that what is seen of x w^T is the order of its sums."""
    rng = torch.Generator().manual_seed(1)
    order = torch.randperm(columns, generator=rng)
    x = torch.randn(260, columns // 2, generator=rng).repeat(1, 2)[:, order]
    w = torch.randn(rows, columns // 2, generator=rng)
    return x, Stored(torch.cat([w, -w], 1)[:, order].contiguous().numpy().view(np.uint8), "F32", (rows, columns))


def dependent(apply: Callable[[Tensor], Tensor], x: Tensor, num_threads: int = 1) -> list[int]:
    """Numbers of rows at which a row comes out otherwise than alone and in one thread."""
    alone = torch.cat([apply(x[i : i + 1]) for i in range(len(x))])
    torch.set_num_threads(num_threads)
    counts = [*range(1, 131, 1 if num_threads == 1 else 7), 255, 256, 257, 260]
    return [n for n in counts if not torch.equal(apply(x[:n]), alone[:n]) or not torch.equal(apply(x[-n:]), alone[-n:])]


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_rows_do_not_depend_on_each_other(bits: int, num_threads: int):
    x, part = cancelling(72, 576)
    assert dependent(pack_linear((part,), (bits,), torch.float32).apply, x, num_threads) == []


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_rows_of_stored_blocks_do_not_depend_on_each_other(kind: str):
    linear = pack_linear((stored(kind, 48, 96),), (stored_bits(kind),))
    assert dependent(linear.apply, activations(260, 96).bfloat16()) == []


def test_results_do_not_depend_on_threads():
    x, part = cancelling(200, 576)
    linear, found = pack_linear((part,), (4,), torch.float32), []
    for num in (1, 2, 3):
        torch.set_num_threads(num)
        found.append(linear.apply(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_row_law_has_teeth():
    """A float32 product fails it, and so does one scale for all rows."""
    x, part = cancelling(72, 576)
    linear, weight = pack_linear((part,), (8,), torch.float32), part.dense()
    assert dependent(lambda rows: rows @ weight.t(), x) != []
    assert dependent(lambda rows: linear.apply(rows / rows.abs().max()), x) != []


def test_parts_of_different_bits_are_stacked():
    parts = (stored("Q4_1", 24, 256), stored("Q6_K", 8, 256), stored("Q5_0", 40, 256))
    bits, x = (4, 8, 5), activations(9, 256)
    whole = pack_linear(parts, bits, torch.float32)
    alone = [pack_linear((part,), (b,), torch.float32) for part, b in zip(parts, bits)]
    assert torch.equal(whole.apply(x), torch.cat([linear.apply(x) for linear in alone], 1))
    assert whole.nbytes == sum(linear.nbytes for linear in alone)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (15, 33), (17, 31), (16, 32), (100, 50)])
def test_any_shape(rows: int, columns: int):
    part, x = stored("F32", rows, columns), activations(3, columns)
    assert apart(pack_linear((part,), (8,), torch.float32).apply(x), oracle(part, 8, x)) < 1e-5


def test_bfloat16_in_and_out():
    part, x = stored("Q4_1", 40, 96), activations(11, 96).bfloat16()
    wide = pack_linear((part,), (4,), torch.float32)
    assert torch.equal(wide.apply(x), wide.apply(x.float()))
    assert torch.equal(pack_linear((part,), (4,)).apply(x), wide.apply(x).bfloat16())


def test_rows_that_are_zero_or_no_numbers():
    linear = pack_linear((stored("Q4_1", 16, 64),), (4,), torch.float32)
    x = torch.zeros(4, 64)
    x[1, 40], x[2, 3] = float("nan"), float("inf")
    found = linear.apply(x)
    assert torch.equal(found[[0, 3]], torch.zeros(2, 16))
    assert not found[1:3].isfinite().any()


def test_many_chunks_of_rows_pack_as_one(monkeypatch: pytest.MonkeyPatch):
    part = stored("Q5_K", 72, 256)
    whole = pack_linear((part,), (5,), torch.float32)
    monkeypatch.setattr("ponder.native.codes.CHUNK", 16 * 256)
    assert len(row_chunks(part)) == 5
    assert torch.equal(pack_linear((part,), (5,), torch.float32).apply(torch.eye(256)), whole.apply(torch.eye(256)))


def test_misuse_is_refused():
    linear: NativeLinear = pack_linear((stored("Q4_1", 16, 64),), (4,))
    for x in (torch.zeros(1, 63), torch.zeros(64), torch.zeros(1, 64, dtype=torch.float64)):
        with pytest.raises(BadField, match=r"\[rows, 64\]"):
            linear.apply(x)
    with pytest.raises(BadField, match="same number of columns"):
        pack_linear((stored("Q4_1", 16, 64), stored("Q4_1", 16, 96)), (4, 4))


def test_no_rows_give_no_rows():
    assert pack_linear((stored("Q4_1", 16, 64),), (4,)).apply(torch.zeros(0, 64)).shape == (0, 16)
