"""The cost model on every family: weights counted as transformers has them, shapes read from config.json alone, experts profiled."""

from functools import cache
from pathlib import Path

import pytest
import torch

from engine.tiny_models import ByteTokenizer
from models.tiny_families import CASES, hf_model, save_folder
from plan.cards import sheet
from plan.scenes import PLANTED
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.accelerate.weights.dense import Float32
from ponder.core.formats import ModelConfig
from ponder.engine.process import LocalProcess
from ponder.models.checkpoint import open_checkpoint
from ponder.models.decoder import load
from ponder.plan.measure import matrix_rates, outline_of
from ponder.plan.predict import outline, predict
from ponder.plan.profile import Cell, Profiler, predict_cell, read_config
from ponder.plan.roofline import Pass, matrix_shapes, num_router_rows, num_weights, operators

pytestmark = pytest.mark.filterwarnings("ignore")
SPARSE = [name for name in CASES if "moe" in name or name == "mixtral"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")

    @cache
    def of(name: str) -> Path:
        return save_folder(name, root / name)

    return of


def check_weights(name: str, config: ModelConfig, count=num_weights) -> None:
    """Matrices and embedding as transformers holds them, tied ones once; norms and biases are vectors."""
    assert count(config) == sum(p.numel() for p in hf_model(name).parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_shapes(name, folder):
    config = read_config(folder(name) / "config.json")
    check_weights(name, config)
    assert config == open_checkpoint(folder(name)).config


def without_shared_expert(config: ModelConfig) -> int:
    return num_weights(config) - sum(config.is_sparse(i) for i in range(config.num_layers)) * 3 * config.dim * config.shared_expert_dim


def without_dense_layers(config: ModelConfig) -> int:
    return num_weights(ModelConfig(**{**vars(config), "sparse_layers": ()}))


@pytest.mark.parametrize("name, wrong", [("qwen2moe", without_shared_expert), ("qwen2moe-dense-layer", without_dense_layers)])
def test_wrong_counts_are_caught(name, wrong, folder):
    with pytest.raises(AssertionError):
        check_weights(name, read_config(folder(name) / "config.json"), wrong)


@pytest.mark.parametrize("name", CASES)
def test_a_long_pass_reads_every_weight_once(name, folder):
    config = read_config(folder(name) / "config.json")
    card = sheet()
    found = operators(outline(config, card, "bf16"), Pass((5000,), (0,), 1))
    routers = sum(config.is_sparse(i) for i in range(config.num_layers)) * num_router_rows(config) * config.dim if config.num_experts else 0
    embedding = 0 if config.is_head_tied else config.vocab_size * config.dim
    assert sum(op.weight_bytes for op in found) == pytest.approx(2 * (num_weights(config) - embedding - routers) + 4 * routers)
    assert predict(outline(config, card, "bf16"), Pass((5000,), (0,), 1), card).seconds > 0


@pytest.mark.parametrize("name", SPARSE)
def test_experts_are_measured_and_profiled(name, folder):
    tokenizer = ByteTokenizer(vocab_size=96, pieces=tuple(bytes([i]) for i in range(96)), eos_ids=frozenset())
    process = LocalProcess(load(open_checkpoint(folder(name)), Float32(), None, torch.float32), Letters(tokenizer), Sarathi())
    profiler = Profiler(process, outline_of(process, "fp32", "fp32"), PLANTED)
    assert profiler.outline.weight_nbytes == dict.fromkeys(("qkv", "o", "gate_up", "down", "head"), 4.0)
    rates = {(rate.out, rate.into) for rate in matrix_rates(profiler.plain, profiler.outline, sheet())}
    assert rates == set(matrix_shapes(process.decoder.config).values())
    cell = Cell("decode", 3, 40)
    found = profiler.profile(cell, sheet())
    assert found.shared >= {"gate_up", "down"} and {"qkv", "o"}.isdisjoint(found.shared), "experts are computed in one go, the others one by one"
    assert found.prediction.ideal == predict_cell(profiler.outline, cell, sheet(), 512).ideal > 0


class Letters:
    """Text as tokens of a tiny vocabulary."""

    def __init__(self, inner) -> None:
        self.vocab_size, self.pieces, self.eos_ids, self.decode = inner.vocab_size, inner.pieces, inner.eos_ids, inner.decode

    def encode(self, text, *, parse_special=False):
        return [byte % 96 for byte in text.encode()]

    def render(self, messages, prefill=""):
        return self.encode("".join(text for _, text in messages) + prefill)
