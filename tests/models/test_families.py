"""Every family against transformers in float32, from both kinds of files: whole, token by token, in chunks, as a tree; and no flag is idle."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.gguf_writer import Stored, write
from models.plain_attend import PlainAttend
from models.tiny_families import CASES, IN_GGUF, VOCAB, hf_model, save_folder, save_gguf
from ponder.accelerate.weights.dense import Bf16, Float32
from ponder.core.errors import BadField, BadModelFile, Unsupported
from ponder.core.formats import ModelConfig
from ponder.models.checkpoint import FileCheckpoint, open_checkpoint
from ponder.models.config import gguf_config
from ponder.models.decoder import Decoder, load, mix_experts, router_logits
from ponder.models.families import FAMILIES
from ponder.models.gguf import read_gguf

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(VOCAB, (44,), generator=torch.Generator().manual_seed(1))
FILES = [(name, "folder") for name in CASES] + [(name, "gguf") for name in IN_GGUF]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """(case, kind of file) -> checkpoint; each is written once."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def of(name: str, kind: str) -> FileCheckpoint:
        path = root / f"{name}.{kind}"
        return open_checkpoint(save_folder(name, path) if kind == "folder" else save_gguf(name, path))

    return of


@cache
def oracle(name: str, tokens: tuple[int, ...]) -> Tensor:
    """transformers' logits [T, V]."""
    with torch.inference_mode():
        return hf_model(name)(torch.tensor([tokens]), use_cache=False).logits[0]


def exact(checkpoint: FileCheckpoint) -> Decoder:
    return load(checkpoint, Float32(), None, torch.float32)


@torch.inference_mode()
def logits(decoder: Decoder, tokens: Tensor, parents: Sequence[int | None], stops: Sequence[int]) -> Tensor:
    """float32 [T, V], computed in steps that end at `stops`."""
    plan, found = PlainAttend(decoder.config), []
    for start, stop in zip([0, *stops], stops, strict=False):
        positions = plan.add(parents[start:stop])
        found.append(decoder.logits(decoder.forward(tokens[start:stop], positions, plan.attend)))
    return torch.cat(found)


def chain(num: int) -> list[int | None]:
    return [None, *range(num - 1)]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_logits_equal_transformers(opened, name: str, kind: str):
    decoder, wanted = exact(opened(name, kind)), oracle(name, tuple(TOKENS.tolist()))
    for stops in ([44], [*range(1, 45)], [5, 6, 17, 30, 44]):
        assert (logits(decoder, TOKENS, chain(44), stops) - wanted).abs().max() < 1e-4, stops


# a trunk of 12, then branches that fork at different depths; deeper than the windows
TREE = [*chain(12), 11, 11, 12, 12, 13, 14, 15, 16, 17, 18, 19, 20, 5, 24, 25, 26]


@pytest.mark.parametrize("name", CASES)
def test_a_token_of_a_tree_sees_its_ancestors_alone(opened, name: str):
    found = logits(exact(opened(name, "folder")), TOKENS, TREE, [12, 20, len(TREE)])
    paths: list[list[int]] = []
    for node, parent in enumerate(TREE):
        paths.append([*([] if parent is None else paths[parent]), node])
    leaves = [node for node in range(len(TREE)) if node not in TREE]
    assert len(leaves) == 4
    for leaf in leaves:
        path = paths[leaf]
        wanted = oracle(name, tuple(TOKENS[path].tolist()))
        assert (found[path] - wanted).abs().max() < 1e-4, path


# ---- every setting matters: with another value, equality fails


def wider(config: ModelConfig, by: int) -> tuple[int | None, ...]:
    return tuple(None if w is None else w + by for w in config.windows)


FLIPS = {
    "linear factors off": ("llama-linear", lambda c: {"rope_factors": None}),
    "llama3 factors off": ("llama3", lambda c: {"rope_factors": None}),
    "other theta": ("llama2", lambda c: {"rope_theta": c.rope_theta * 2}),
    "other eps": ("llama2", lambda c: {"norm_eps": 0.01}),
    "window wider by one": ("mistral", lambda c: {"windows": wider(c, 1)}),
    "window narrower by one": ("phi3", lambda c: {"windows": wider(c, -1)}),
    "no window": ("qwen2-window", lambda c: {"windows": ()}),
    "window in the first layer": ("qwen2-window", lambda c: {"windows": (7, 7, 7)}),
    "no biases": ("qwen2", lambda c: {"is_qkv_biased": False}),
    "yarn factors off": ("qwen2-yarn", lambda c: {"rope_factors": None}),
    "yarn scale off": ("qwen2-yarn", lambda c: {"rope_scale": 1.0}),
    "no qk norm": ("qwen3", lambda c: {"qk_norm": "none"}),
    "router not normed": ("mixtral", lambda c: {"is_router_normed": False}),
    "router normed": ("olmoe", lambda c: {"is_router_normed": True}),
    "fewer experts used": ("qwen3moe", lambda c: {"num_experts_used": 1}),
    "no shared expert": ("qwen2moe", lambda c: {"shared_expert_dim": 0}),
    "attention softcap off": ("gemma2", lambda c: {"attn_softcap": None}),
    "logit softcap off": ("gemma2", lambda c: {"head_softcap": None}),
    "embedding not scaled": ("gemma2", lambda c: {"embed_scale": 1.0}),
    "query not scaled": ("gemma2", lambda c: {"query_scale": 1.0}),
    "silu": ("gemma2", lambda c: {"activation": "silu"}),
    "gelu": ("llama2", lambda c: {"activation": "gelu"}),
    "no post-norms": ("gemma2", lambda c: {"has_post_norms": False}),
    "no pre-norms": ("gemma3", lambda c: {"has_pre_norms": False}),
    "windows in the other layers": ("gemma2", lambda c: {"windows": (None, 7, None)}),
    "local theta everywhere": ("gemma3", lambda c: {"rope_theta": c.rope_local_theta, "rope_factors": None}),
    "global theta everywhere": ("gemma3", lambda c: {"rope_local_theta": None}),
    "gemma3 factors off": ("gemma3", lambda c: {"rope_factors": None}),
    "local layer narrower by one": ("gemma3", lambda c: {"windows": wider(c, -1)}),
    "all rotates": ("phi3-longrope", lambda c: {"rotary_dim": None, "rope_factors": None}),
    "less rotates": ("phi3-longrope", lambda c: {"rotary_dim": 4, "rope_factors": c.rope_factors[:2]}),
    "short factors off": ("phi3-longrope", lambda c: {"rope_factors": None}),
    "long factors": ("phi3-longrope", lambda c: {"rope_factors": c.long_rope_factors}),
    "longrope scale off": ("phi3-longrope", lambda c: {"rope_scale": 1.0}),
    "all layers rotate": ("smollm3", lambda c: {"rotary_layers": ()}),
    "another layer does not": ("smollm3", lambda c: {"rotary_layers": (True, True, False, True, True)}),
    "no norm of a row": ("olmo2", lambda c: {"qk_norm": "none"}),
    "no norm of what is added": ("olmo2", lambda c: {"has_post_norms": False}),
}


@pytest.mark.parametrize("flip", FLIPS)
def test_no_flag_is_idle(opened, flip: str):
    name, change = FLIPS[flip]
    checkpoint = opened(name, "folder")
    wrong = replace(checkpoint, config=replace(checkpoint.config, **change(checkpoint.config)))
    gap = (logits(exact(wrong), TOKENS, chain(44), [44]) - oracle(name, tuple(TOKENS.tolist()))).abs().max()
    assert gap > 1e-3


@pytest.mark.parametrize("name", ["llama2", "smollm3", "mistral"])
def test_rows_of_q_and_k_left_in_the_order_of_the_file_are_seen(opened, name: str):
    wrong = replace(opened(name, "gguf"), are_pairs_interleaved=False)
    assert (logits(exact(wrong), TOKENS, chain(44), [44]) - oracle(name, tuple(TOKENS.tolist()))).abs().max() > 1e-3


@pytest.mark.parametrize("name", IN_GGUF)
def test_both_kinds_of_files_tell_the_same(opened, name: str):
    ours, theirs = (rounded(opened(name, kind).config) for kind in ("folder", "gguf"))
    assert replace(ours, ffn_dim=0) == replace(theirs, ffn_dim=0)  # of no use where all layers have experts


def rounded(config: ModelConfig) -> ModelConfig:
    """To five digits: GGUF stores float32."""

    def five(value: object) -> object:
        return tuple(map(five, value)) if isinstance(value, tuple) else float(f"{value:.5g}") if isinstance(value, float) else value

    return replace(config, **{key: five(value) for key, value in vars(config).items()})


def test_a_tree_read_as_a_chain_is_seen(opened):
    """Teeth: a token that sees its elder siblings says something else."""
    decoder = exact(opened("llama2", "folder"))
    gap = logits(decoder, TOKENS[:28], TREE, [28]) - logits(decoder, TOKENS[:28], chain(28), [28])
    assert gap[:13].abs().max() < 1e-4
    assert gap[13:].abs().max() > 1e-3


# ---- longer contexts


def test_longrope_has_two_lists(opened):
    """The short one up to the context it was trained on, the long one for a decoder of a longer context."""
    checkpoint = opened("phi3-longrope", "folder")
    assert (checkpoint.config.context_len, checkpoint.config.long_context_len) == (96, 128)
    tokens = torch.randint(VOCAB, (120,), generator=torch.Generator().manual_seed(2))
    long = load(checkpoint, Float32(), None, torch.float32, context_len=128)
    assert (logits(long, tokens, chain(120), [120]) - oracle("phi3-longrope", tuple(tokens.tolist()))).abs().max() < 1e-4
    near = exact(checkpoint)
    assert long.model_id != near.model_id
    short = load(checkpoint, Float32(), None, torch.float32, context_len=50)
    assert short.model_id == near.model_id
    assert short.tables[0].at(torch.tensor([49, 0]))[0].shape == (2, 1, 8)
    with pytest.raises(IndexError):
        short.tables[0].at(torch.tensor([50]))


@pytest.mark.parametrize("context_len", [0, -1, 129])
def test_contexts_out_of_bounds_are_named(opened, context_len: int):
    with pytest.raises(BadField, match=f"context_len is {context_len}; the model's own allows 1 to 128"):
        load(opened("llama2", "folder"), Float32(), context_len=context_len)


# ---- experts


def experts_of(checkpoint: FileCheckpoint):
    return load(checkpoint, Bf16(), Float32()).layers[0].experts


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe", "qwen3moe", "olmoe"])
def test_what_experts_say_of_a_row_does_not_depend_on_other_rows(opened, name: str):
    """Bit for bit, in a format that keeps rows apart."""
    checkpoint = opened(name, "folder")
    experts, config = experts_of(checkpoint), checkpoint.config
    x_TD = torch.randn(70, config.dim, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = mix_experts(x_TD, experts, config)
    for rows in ([0], [5, 6], [69, 0, 33], [*range(40)]):
        assert torch.equal(mix_experts(x_TD[rows], experts, config), whole[rows])


@pytest.mark.parametrize(("num_experts", "dim"), [(8, 4096), (61, 2048), (129, 2048), (5, 33)])
def test_router_logits_do_not_depend_on_other_rows(num_experts: int, dim: int):
    torch.manual_seed(0)
    x_TD, router = torch.randn(300, dim), torch.randn(num_experts, dim)
    whole = router_logits(x_TD, router)
    assert (whole - x_TD.double() @ router.double().T).abs().max() < 1e-3
    for rows in ([0], [1, 2], [*range(17)], [299, 3, 256]):
        assert torch.equal(router_logits(x_TD[rows], router), whole[rows])


def test_experts_are_rows_of_the_file(opened, tmp_path: Path):
    """In GGUF all experts of a layer are one tensor; each is some of its rows, in the kind that is stored."""
    checkpoint = opened("olmoe", "gguf")
    assert checkpoint.config.num_experts == 6
    one, other = checkpoint.tensor("layers.1.experts.2.up"), checkpoint.tensor("layers.1.experts.3.up")
    whole = read_gguf(checkpoint.files[0]).blocks("blk.1.ffn_up_exps.weight")
    assert one.shape == (48, 32)
    assert np.array_equal(one.blocks(), whole[96:144])
    assert np.array_equal(other.blocks(), whole[144:192])
    assert np.array_equal(one.blocks(5, 7), whole[101:103])


def test_quantised_experts(tmp_path: Path):
    """Blocks of an expert decode to its rows of the stack."""
    path = save_gguf("mixtral", tmp_path / "m.gguf")
    gguf = read_gguf(path)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 120, (5 * 48, 34), dtype=np.uint8)
    tensors = {name: Stored(info.kind.name, info.shape, gguf.blocks(name)) for name, info in gguf.tensors.items()}
    tensors["blk.0.ffn_gate_exps.weight"] = Stored("Q8_0", (5, 48, 32), raw)
    checkpoint = open_checkpoint(write(tmp_path / "q.gguf", gguf.metadata, tensors))
    gate = checkpoint.tensor("layers.0.experts.3.gate")
    assert gate.kind == "Q8_0"
    assert np.array_equal(gate.blocks(), raw[144:192])
    assert torch.equal(gate.dense(2, 5), gate.dense()[2:5])


def test_fused_rows_are_rows_of_the_file(opened):
    checkpoint = opened("phi3", "gguf")
    whole = read_gguf(checkpoint.files[0]).blocks("blk.0.attn_qkv.weight")
    for name, start, stop in (("q", 0, 32), ("k", 32, 48), ("v", 48, 64)):
        assert np.array_equal(checkpoint.tensor(f"layers.0.{name}").blocks(), whole[start:stop])


# ---- what is not there, is not supported, or does not fit


def test_unusual_settings_are_named(opened):
    assert opened("llama3", "folder").config.unusual == frozenset()
    assert opened("qwen2", "folder").config.unusual == frozenset()
    assert opened("qwen3", "folder").config.unusual == {"qk_norm"}
    assert opened("gemma2", "gguf").config.unusual == {"has_post_norms", "activation", "query_scale"}
    assert opened("olmo2", "gguf").config.unusual == {"has_post_norms", "has_pre_norms", "qk_norm"}
    assert opened("mixtral", "gguf").config.unusual == {"num_experts"}


@pytest.mark.parametrize("arch", ["mamba", "gemma", "gpt2", "falcon", "deepseek2", "qwen35", "phi2", "command-r"])
def test_other_architectures_are_refused(tmp_path: Path, arch: str):
    path = save_gguf("llama2", tmp_path / "m.gguf")
    gguf = read_gguf(path)
    tensors = {name: Stored(info.kind.name, info.shape, gguf.blocks(name)) for name, info in gguf.tensors.items()}
    metadata = {key.replace("llama.", f"{arch}."): value for key, value in gguf.metadata.items()} | {"general.architecture": arch}
    with pytest.raises(Unsupported, match=f"architecture '{arch}' is not supported; supported are llama, qwen2, qwen3"):
        open_checkpoint(write(tmp_path / "other.gguf", metadata, tensors))


BAD_GGUF = {
    "missing": ("qwen3", {"tensor": "blk.0.attn_q_norm.weight"}),
    "expert_gating_func": ("olmoe", {"expert_gating_func": 2}),
    "experts used of 6": ("olmoe", {"expert_used_count": 7}),
    "the model's settings ask for": ("olmoe", {"expert_count": 5}),
    "sliding_window = 7 is not supported": ("qwen2", {"attention.sliding_window": 7}),
    "dimension_count = 4 differs": ("llama2", {"rope.dimension_count": 4}),
    "must hold true or false for each of 4": ("gemma3", {"attention.sliding_window_pattern": np.array([1, 0], dtype=np.uint8)}),
    "must hold 4 positive numbers": ("phi3-longrope", {"rope.dimension_count": 8}),
    "attn_factor = 2.0 is not supported": ("qwen2-yarn", {"rope.scaling.attn_factor": 2.0}),
    "softcapping = 5.0 is not supported": ("llama2", {"attn_logit_softcapping": 5.0}),
}


@pytest.mark.parametrize("message", BAD_GGUF)
def test_bad_settings_of_gguf_are_named(tmp_path: Path, message: str):
    name, changes = BAD_GGUF[message]
    path = save_gguf(name, tmp_path / "m.gguf", {key: value for key, value in changes.items() if key != "tensor"})
    if "tensor" in changes:
        gguf = read_gguf(path)
        kept = {n: Stored(i.kind.name, i.shape, gguf.blocks(n)) for n, i in gguf.tensors.items() if n != changes["tensor"]}
        path = write(tmp_path / "less.gguf", gguf.metadata, kept)
    with pytest.raises(BadModelFile, match=message):
        open_checkpoint(path)


SHORTER = {"rope_type": "longrope", "short_factor": [1], "partial_rotary_factor": 0.75}
BAD_FOLDER = {
    "hidden_activation = 'relu'": ("gemma2", {"hidden_activation": "relu"}),
    "use_bidirectional_attention = True": ("gemma3", {"use_bidirectional_attention": True}),
    "layer_types": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["chunked_attention"] * 3}),
    "clip_qkv = 8.0": ("olmoe", {"clip_qkv": 8.0}),
    "use_sliding_window": ("qwen3moe", {"use_sliding_window": True, "sliding_window": 8}),
    "norm_topk_prob is 'yes'": ("olmoe", {"norm_topk_prob": "yes"}),
    "mlp_only_layers is 3": ("qwen3moe", {"mlp_only_layers": 3}),
    "num_experts = 4": ("qwen3", {"num_experts": 4}),
    "short_factor must hold 3 positive": ("phi3-longrope", {"rope_parameters": SHORTER}),
    "mscale = 1.0": ("qwen2-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}}),
    "architectures .'Gemma3ForConditionalGeneration'. are not supported": ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_FOLDER)
def test_bad_settings_of_folders_are_named(tmp_path: Path, message: str):
    name, changes = BAD_FOLDER[message]
    folder = save_folder(name, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModelFile, match=message):
        open_checkpoint(folder)


OLDER = {
    "gemma3": {
        "rope_parameters": None, "rope_theta": 2e4, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": None, "sliding_window_pattern": 3,
    },
    "gemma2": {"layer_types": None, "hidden_act": "gelu", "hidden_activation": None, "rope_parameters": None, "rope_theta": 1e4},
    "llama3": {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    "phi3-longrope": {"rope_parameters": None, "rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 96,
                      "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 4.0]}},
    "qwen3moe": {"num_local_experts": None, "num_experts": 6},
    "smollm3": {"no_rope_layers": None},
    "olmo2": {"rope_parameters": None, "rope_theta": 1e4},
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_older_spellings_of_configs(opened, tmp_path: Path, name: str):
    """What transformers 4 wrote gives the same model."""
    folder = save_folder(name, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | OLDER[name]
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert open_checkpoint(folder).config == opened(name, "folder").config


@pytest.mark.parametrize(("arch", "num_layers", "scale"), [("gemma2", 46, 2.0), ("gemma2", 42, 1.0), ("gemma3", 62, 2.0)])
def test_the_largest_gemma_scales_by_width(opened, arch: str, num_layers: int, scale: float, tmp_path: Path):
    """Its GGUF files do not say so: 1 / sqrt(dim / heads), here dim / heads = 8 with heads of 32."""
    gguf = read_gguf(opened(arch, "gguf").files[0])
    changes = {"block_count": num_layers, "attention.key_length": 32, "attention.value_length": 32, "attention.scale": 0.0,
               "attention.sliding_window_pattern": 3}  # fmt: skip
    metadata = gguf.metadata | {f"{arch}.{key}": value for key, value in changes.items()}
    shapes = {name: info.shape for name, info in gguf.tensors.items()}
    assert gguf_config("m.gguf", metadata, shapes, {}).query_scale == scale


def test_every_family_is_tried():
    tried = {"llama" if c.model in ("Llama", "Mistral", "Mixtral") else c.model.lower() for c in CASES.values()}
    assert tried == set(FAMILIES)
