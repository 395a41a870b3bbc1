"""Devices by name, what is packed for them, and a decoder moved there whole."""

import pytest
import torch

from engine.tiny_models import tiny
from models.plain_attend import PlainAttend
from models.tiny_families import CASES, save_folder
from ponder import catalogue
from ponder.accelerate.weights.dense import Float32
from ponder.accelerate.weights.dense_device import DenseDevice, DenseDeviceHead
from ponder.core.errors import BadField, UnknownName
from ponder.engine.device import find_device
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import Decoder, load
from ponder.models.place import place

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")


def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "CUDA"])
def test_an_unknown_device_is_refused(name: str):
    if name == "cuda:":
        name = "cuda:-1"
    with pytest.raises(BadField, match=r"must be 'cpu', 'cuda' or 'cuda:N'; name one"):
        find_device(name)


def test_without_a_card_cuda_is_refused_with_value_rule_and_mend(monkeypatch: pytest.MonkeyPatch):
    no_cuda(monkeypatch)
    with pytest.raises(BadField, match=r"device='cuda': PyTorch .* finds no CUDA card here; install a CUDA build .* or take 'cpu'"):
        find_device("cuda")
    with pytest.raises(BadField, match="finds no CUDA card"):
        catalogue.open_model(None, device="cuda")  # before the path is looked at  # type: ignore[arg-type]


def test_a_card_beyond_those_here_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadField, match="there are 2 CUDA cards; take 'cuda:0' to 'cuda:1'"):
        find_device("cuda:2")


def test_formats_go_with_their_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert (catalogue.weights_on("cpu", None), catalogue.weights_on("cuda", None)) == ("native", "dense")
    with pytest.raises(UnknownName, match="unknown weight format on cuda 'native'"):
        catalogue.weights_on("cuda", "native")
    with pytest.raises(UnknownName, match="unknown weight format 'dense'"):
        catalogue.weights_on("cpu", "dense")
    matrices, head, dtype = catalogue.formats_of("fp16", "cuda")
    assert (matrices, dtype) == (DenseDevice(device=torch.device("cuda", 0), dtype=torch.float16), torch.float16)
    assert head.name == "dense-float16-head"


@torch.inference_mode()
def logits_of(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    plan = PlainAttend(decoder.config)
    positions = plan.add([None, *range(len(tokens) - 1)])

    def attend(layer: int, *qkv: torch.Tensor) -> torch.Tensor:
        return plan.attend(layer, *(x.float() for x in qkv)).to(decoder.dtype)

    return decoder.logits(decoder.forward(tokens, positions, attend))


@pytest.mark.parametrize("name", CASES)
def test_a_placed_decoder_is_the_decoder(name: str, tmp_path):
    """In float32: dense rows say what the CPU's format says, to the bit of the same products."""
    checkpoint = open_checkpoint(save_folder(name, tmp_path))
    formats = DenseDevice(device=CPU, dtype=torch.float32), DenseDeviceHead(device=CPU, dtype=torch.float32)
    plain = load(checkpoint, Float32(), None, torch.float32)
    placed = place(load(checkpoint, *formats, torch.float32), formats[0], CPU)
    tokens = torch.randint(96, (40,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits_of(placed, tokens), logits_of(plain, tokens))
    assert placed.model_id.endswith("/dense-float32/dense-float32-head/float32/cpu")


def test_half_precision_says_nearly_the_same():
    checkpoint, _ = tiny("qwen2")
    tokens = torch.randint(256, (40,), generator=torch.Generator().manual_seed(1))
    exact = logits_of(load(checkpoint, Float32(), None, torch.float32), tokens)
    for dtype, limit in ((torch.bfloat16, 0.05), (torch.float16, 0.008)):
        formats = DenseDevice(device=CPU, dtype=dtype), DenseDeviceHead(device=CPU, dtype=dtype)
        found = logits_of(place(load(checkpoint, *formats, dtype), formats[0], CPU), tokens)
        error = (found - exact).norm() / exact.norm()
        assert 1e-5 < error < limit, (dtype, error)


def tensors_of(value: object) -> list[torch.Tensor]:
    """All that hang on a value, through tuples and objects."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = list(value) if isinstance(value, tuple | list) else list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_of(part)]


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "qwen2moe"])
def test_everything_moves_that_holds_numbers(name: str, tmp_path):
    checkpoint, meta = open_checkpoint(save_folder(name, tmp_path)), torch.device("meta")
    weights = DenseDevice(device=meta, dtype=torch.bfloat16)
    packed = load(checkpoint, weights, DenseDeviceHead(device=meta), torch.bfloat16)
    found = tensors_of(place(packed, weights, meta))
    assert len(found) > 20
    assert {tensor.device for tensor in found} == {meta}
    assert {tensor.device for tensor in tensors_of(packed)} == {meta, CPU}, "the law sees what stays behind"
