"""The weight formats of the compiled kernels: the error they state, and what they are where there are no kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from native.stored_tensors import in_float32, stored
from ponder.accelerate.weights.dense import Bf16
from ponder.accelerate.weights.int4 import Int4
from ponder.accelerate.weights.int8 import Int8Head
from ponder.accelerate.weights.native import Native, NativeHead
from ponder.accelerate.weights.native4 import Native4
from ponder.accelerate.weights.native8 import Native8
from ponder.native.build import library
from ponder.native.matrix import NativeLinear

NATIVE, HEAD = Native(narrow=Int4(), wide=Bf16()), NativeHead(fallback=Int8Head())
FORMATS = [NATIVE, HEAD, Native4(fallback=Int4()), Native8(fallback=Bf16())]
needs_kernels = pytest.mark.skipif(library() is None, reason="no compiled kernels here")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("native", "native4", "native8"):
        monkeypatch.setattr(f"ponder.accelerate.weights.{name}.library", lambda: None)


def worst(apply: Callable[[Tensor], Tensor], weight: Tensor) -> float:
    found = apply(torch.eye(weight.shape[1]).bfloat16()).float().t()
    return ((found - weight).abs().amax(1) / weight.abs().amax(1)).max().item()


@needs_kernels
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_error_is_as_stated(fmt: Native):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1e-3
    weight[4, 7] = 5.0
    weight[5] = weight[5].abs()
    found = worst(fmt.pack((in_float32(weight),)).apply, weight)
    assert fmt.error / 8 < found <= fmt.error


@needs_kernels
def test_names_tell_results_apart():
    assert len({fmt.name for fmt in FORMATS}) == len(FORMATS)


@needs_kernels
def test_the_head_gives_float32():
    weight = in_float32(torch.randn(32, 64))
    assert HEAD.pack((weight,)).apply(torch.randn(2, 64)).dtype == torch.float32
    assert NATIVE.pack((weight,)).apply(torch.randn(2, 64)).dtype == torch.bfloat16


def test_without_kernels_each_is_its_fallback(no_kernels: None):
    dense, narrow = in_float32(torch.randn(32, 64)), stored("Q4_K", 32, 256)
    cases = [(fmt, fallback, dense) for fmt, fallback in zip(FORMATS, (Bf16(), Int8Head(), Int4(), Bf16()), strict=True)]
    for fmt, fallback, part in [*cases, (NATIVE, Int4(), narrow)]:
        packed = fmt.pack((part,))
        assert not isinstance(packed, NativeLinear)
        x = torch.randn(3, part.shape[1]).bfloat16()
        assert torch.equal(packed.apply(x), fallback.pack((part,)).apply(x))
    assert [fmt.name for fmt in FORMATS] == ["int4-or-bf16", "int8-head", "int4", "bf16"]
    assert NATIVE.error == Int4().error
