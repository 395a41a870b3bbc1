"""The layer body by Triton kernels against the plain body, on a card or in Triton's interpreter; what it declines."""

import pytest
import torch

from models.tiny_families import CASES, save_folder
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import Decoder, PlainBody, load
from ponder.models.place import place
from ponder.native import paged, rows

pytestmark = pytest.mark.filterwarnings("ignore")
needs_triton = pytest.mark.skipif(
    not paged.is_here(torch.device("cpu")), reason="needs Triton and TRITON_INTERPRET=1: the kernels run in its interpreter"
)
FUSED = ("llama2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-longrope", "smollm3")
WHERE = [pytest.param("cpu", marks=needs_triton), pytest.param("cuda", marks=pytest.mark.gpu)]


def decoder_of(name: str, folder, device: str, dtype: torch.dtype) -> Decoder:
    where = torch.device(device)
    weights, head = DenseDevice(device=where, dtype=dtype), DenseDeviceHead(device=where, dtype=dtype)
    return place(load(open_checkpoint(save_folder(name, folder)), weights, head, dtype), weights, where)


def worst_of(decoder: Decoder, num: int) -> float:
    """The largest difference of the two bodies over all layers, relative to the largest number."""
    generator = torch.Generator().manual_seed(0)
    config, device, worst = decoder.config, decoder.device, 0.0
    for index, body in enumerate(decoder.bodies):
        plain = PlainBody(decoder.layers[index], config, decoder.dtype)
        x = torch.randn(num, config.dim, generator=generator).to(device)
        out = torch.randn(num, config.num_heads * config.head_dim, generator=generator).to(device, decoder.dtype)
        positions = torch.randint(64, (num,), generator=generator).to(device)
        cos, sin = decoder.tables[decoder.table_of[index]].at(positions)
        found = [*body.before(x.clone(), cos, sin), body.after(x.clone(), out)]
        wanted = [*plain.before(x.clone(), cos, sin), plain.after(x.clone(), out)]
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype
            worst = max(worst, ((a.float() - b.float()).abs().max() / b.float().abs().max()).item())
    return worst


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("name", FUSED)
@torch.inference_mode()
def test_the_fused_body_is_the_plain_one(name: str, device: str, tmp_path):
    decoder = decoder_of(name, tmp_path, device, torch.float32)
    assert {type(body) for body in decoder.bodies} == {rows.DeviceBody}
    assert worst_of(decoder, 5) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_fused_body_in_half_precision(dtype: torch.dtype, tmp_path):
    assert worst_of(decoder_of("qwen2", tmp_path, "cuda", dtype), 33) < 0.02


@needs_triton
@torch.inference_mode()
def test_the_law_has_teeth(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Wrong: rotated the other way."""
    decoder = decoder_of("qwen2", tmp_path, "cpu", torch.float32)
    right = rows.finish_qkv
    monkeypatch.setattr(rows, "finish_qkv", lambda qkv, layer, config, *, cos, sin: right(qkv, layer, config, cos=cos, sin=-sin))
    assert worst_of(decoder, 5) > 1e-2


@pytest.mark.parametrize("name", ["olmo2", "olmoe", "mixtral", "qwen2moe-dense-layer"])
def test_it_declines_what_it_does_not_know(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paged, "is_here", lambda device: True)
    assert {type(body) for body in decoder_of(name, tmp_path, "cpu", torch.float32).bodies} == {PlainBody}
    assert name in CASES


def test_without_triton_the_body_is_plain(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paged, "kernels", None)
    assert {type(body) for body in decoder_of("qwen2", tmp_path, "cpu", torch.float32).bodies} == {PlainBody}


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3", "smollm3", "gemma2"])
@torch.inference_mode()
def test_few_rows_are_many_rows(name: str, num: int, device: str, tmp_path):
    """The same body for 1 or 2 rows, by its own kernel where no norm follows a product; each row's numbers are its own."""
    decoder = decoder_of(name, tmp_path, device, torch.float32)
    assert decoder.bodies[0].is_few(torch.zeros(num, 1)) is (name != "gemma2")
    assert worst_of(decoder, num) < 1e-5


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("kind", ["plain", "norm", "gated", "added"])
@torch.inference_mode()
def test_a_product_of_few_rows(kind: str, device: str):
    """Widths that fill no block, against PyTorch; and a row's result is the same alone, bit for bit."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(38, 90, generator=generator).to(device), torch.randn(2, 90, generator=generator).to(device)
    norm, into = torch.rand(90, generator=generator).to(device), torch.randn(2, 38, generator=generator).to(device)
    options = {"plain": {}, "norm": {"norm": norm, "eps": 1e-6}, "gated": {"activation": "silu"}, "added": {}}[kind]
    read = torch.nn.functional.rms_norm(x, (90,), norm, 1e-6) if kind == "norm" else x
    wanted = read @ weight.T
    if kind == "gated":
        wanted = torch.nn.functional.silu(wanted[:, :19]) * wanted[:, 19:]
    if kind == "added":
        wanted = wanted + into
    found = rows.few_rows(x, weight, into=into.clone() if kind == "added" else None, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    alone = rows.few_rows(x[1:], weight, into=into[1:].clone() if kind == "added" else None, **options)
    assert torch.equal(alone[0], found[1])


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_few_rows_in_half_precision(dtype: torch.dtype, device: str, tmp_path):
    """What a card runs when one sequence generates."""
    assert worst_of(decoder_of("qwen2", tmp_path, device, dtype), 1) < 0.02
