"""Products of some rows by Triton kernels: what speculation's rounds run on a card, against PyTorch and the plain body."""

import pytest
import torch

from native.test_rows import WHERE, decoder_of, needs_triton, worst_of
from ponder.native import rows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def they_are_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows.DeviceBody, "most", rows.MAX_SOME)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@torch.inference_mode()
def test_the_body_of_some_rows_is_the_plain_one(name: str, device: str, tmp_path):
    decoder = decoder_of(name, tmp_path, device, torch.float32)
    assert worst_of(decoder, rows.MAX_FEW + 1) < 1e-5
    assert worst_of(decoder, rows.MAX_SOME) < 1e-5


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("kind", ["plain", "gated", "added"])
@torch.inference_mode()
def test_a_product_of_some_rows(kind: str, device: str):
    """Widths that fill no block, against PyTorch; and a row's result is the same beside others, bit for bit."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(38, 90, generator=generator).to(device), torch.randn(5, 90, generator=generator).to(device)
    into = torch.randn(5, 38, generator=generator).to(device)
    options = {"activation": "silu"} if kind == "gated" else {}
    wanted = x @ weight.T
    if kind == "gated":
        wanted = torch.nn.functional.silu(wanted[:, :19]) * wanted[:, 19:]
    if kind == "added":
        wanted = wanted + into
    found = rows.some_rows(x, weight, into=into.clone() if kind == "added" else None, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    alone = rows.some_rows(x[1:], weight, into=into[1:].clone() if kind == "added" else None, **options)
    assert torch.equal(alone, found[1:])


@needs_triton
@torch.inference_mode()
def test_the_law_has_teeth(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Wrong: rotated the other way."""
    decoder = decoder_of("qwen2", tmp_path, "cpu", torch.float32)
    right = rows.some_qkv
    monkeypatch.setattr(rows, "some_qkv", lambda x, weight, layer, config, *, cos, sin: right(x, weight, layer, config, cos=cos, sin=-sin))
    assert worst_of(decoder, 5) > 1e-2


@pytest.mark.gpu
@torch.inference_mode()
def test_some_rows_in_half_precision(tmp_path):
    assert worst_of(decoder_of("qwen2", tmp_path, "cuda", torch.bfloat16), 9) < 0.02
