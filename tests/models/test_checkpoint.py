"""Checkpoints give the decoder's tensors, in its order, from both kinds of files, and refuse what they cannot honour."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.gguf_writer import Stored, f32, q8_0, tiny_llama, write
from ponder.core.errors import BadModelFile, UnknownName, Unsupported
from ponder.core.formats import ModelConfig
from ponder.models.checkpoint import HF_NAMES, FileCheckpoint, expected_shapes, halves_order, open_checkpoint
from ponder.models.dequantize import KINDS, dequantize
from ponder.models.fields import Fields
from ponder.models.rope import llama3_factors
from ponder.models.tokenizer import open_model, open_tokenizer

Weights = dict[str, torch.Tensor]
CONFIG = ModelConfig(
    arch="llama", num_layers=2, dim=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=300, context_len=128, norm_eps=1e-5,
    rope_theta=1e4,
)  # fmt: skip
VALUES: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
    "eos_token_id": 2,
}  # fmt: skip


def hf_name(name: str) -> str:
    if not name.startswith("layers."):
        return HF_NAMES[name]
    _, layer, part = name.split(".", 2)
    return f"{HF_NAMES['layers.']}{layer}.{HF_NAMES[part]}"


def weights_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in expected_shapes(config).items()}


def write_folder(folder: Path, weights: Weights, values: dict[str, object], num_shards: int = 1) -> Path:
    """A Hugging Face folder; weights under our names. A value of None leaves the key out."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    stored = {hf_name(name) if name in {*expected_shapes(replace(CONFIG, is_qkv_biased=True))} else name: w for name, w in weights.items()}
    if num_shards == 1:
        safetensors.torch.save_file(stored, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{i % num_shards + 1:05d}-of-{num_shards:05d}.safetensors" for i, name in enumerate(stored)}
    for shard in set(weight_map.values()):
        safetensors.torch.save_file({n: w for n, w in stored.items() if weight_map[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What the published converter does to q and k of a llama: halves of each head become pairs."""
    return rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def check_equal(checkpoint: FileCheckpoint, weights: Weights) -> None:
    assert set(checkpoint.entries) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(checkpoint.tensor(name).dense(), weight.float()), name


# ---- GGUF


def write_gguf(path: Path, weights: Weights, metadata: dict[str, object] | None = None) -> Path:
    """A llama as the published converter stores it, in F32, from weights under our names."""
    names = {"embed": "token_embd", "norm": "output_norm", "head": "output", "o": "attn_output", "q": "attn_q", "k": "attn_k", "v": "attn_v"}
    tensors = {}
    for name, weight in weights.items():
        *layer, part = name.removesuffix(".bias").split(".")
        rows = interleaved(weight.numpy(), 4 if part == "q" else 2) if part in ("q", "k") else weight.numpy()
        stored = names.get(part, f"ffn_{part}" if part in ("gate", "up", "down") else part)
        prefix = f"blk.{layer[1]}." if layer else ""
        tensors[f"{prefix}{stored}.{'bias' if name.endswith('.bias') else 'weight'}"] = f32(rows)
    base = {k: v for k, v in tiny_llama(np.random.default_rng(0))[0].items() if not k.startswith("tokenizer")}
    values = base | {"llama.block_count": 2} | (metadata or {})
    return write(path, {k: v for k, v in values.items() if v is not None}, tensors)


@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_llama_gguf_rows_come_back_in_halves(tmp_path: Path, is_biased: bool, is_tied: bool):
    config = replace(CONFIG, is_qkv_biased=is_biased, is_head_tied=is_tied)
    weights = weights_of(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))
    assert replace(checkpoint.config, norm_eps=1e-5) == config
    assert checkpoint.config.norm_eps == pytest.approx(1e-5)
    check_equal(checkpoint, weights)
    q = checkpoint.tensor("layers.1.q")
    assert torch.equal(torch.from_numpy(q.blocks().view(np.float32)), weights["layers.1.q"])
    assert torch.equal(q.dense(3, 9), weights["layers.1.q"][3:9])
    assert np.array_equal(q.blocks(3, 9), q.blocks()[3:9])
    assert q.blocks(9, 9).shape == q.blocks()[:0].shape


def test_identity_order_would_be_seen():
    """Teeth: rows left as the file has them are another matrix."""
    rows = np.arange(32).reshape(32, 1)
    assert np.array_equal(interleaved(rows, 4)[halves_order(4, 8)], rows)
    assert not np.array_equal(interleaved(rows, 4), rows)
    assert not np.array_equal(interleaved(rows, 4)[halves_order(2, 16)], rows)


@pytest.mark.parametrize("name", KINDS)
def test_permuted_blocks_decode_to_permuted_rows(tmp_path: Path, name: str):
    """Raw blocks are in the decoder's order too, whatever the kind."""
    kind, rng = KINDS[name], np.random.default_rng(0)
    raw = rng.integers(0, 120, (512, 512 // kind.values * kind.nbytes), dtype=np.uint8)
    metadata, tensors = tiny_llama(rng, dim=512)
    metadata |= {"llama.attention.head_count_kv": 4, "llama.rope.dimension_count": 128}
    tensors |= {f"blk.0.attn_{x}.weight": q8_0(rng, 512, 512) for x in "kv"} | {"blk.0.attn_q.weight": Stored(name, (512, 512), raw)}
    tensor = open_checkpoint(write(tmp_path / "m.gguf", metadata, tensors)).tensor("layers.0.q")
    assert (tensor.kind, tensor.shape) == (name, (512, 512))
    assert np.array_equal(interleaved(tensor.blocks(), 4), raw)
    assert np.array_equal(tensor.dense().numpy(), dequantize(kind, tensor.blocks()), equal_nan=True)
    assert np.array_equal(tensor.dense(100, 131).numpy(), tensor.dense().numpy()[100:131], equal_nan=True)


def test_smollm2(smollm2_path: Path):
    checkpoint, tokenizer = open_model(smollm2_path)
    config = checkpoint.config
    assert (config.arch, config.num_layers, config.dim, config.num_heads, config.num_kv_heads) == ("llama", 30, 576, 9, 3)
    assert config.is_head_tied
    assert (config.rope_theta, config.vocab_size, config.context_len) == (1e5, 49152, 8192)
    assert tokenizer.vocab_size == config.vocab_size
    assert len(checkpoint.entries) == 272
    assert checkpoint.model_id == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def loss_in_transformers(checkpoint: FileCheckpoint, ids: list[int]) -> float:
    """Mean -log p of a text, nats per token, by transformers' own Llama with the weights of `checkpoint`."""
    llama = pytest.importorskip("transformers.models.llama", reason="transformers is the reference")
    c = checkpoint.config
    config = llama.LlamaConfig(
        hidden_size=c.dim, intermediate_size=c.ffn_dim, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, vocab_size=c.vocab_size,
        num_key_value_heads=c.num_kv_heads, rms_norm_eps=c.norm_eps, tie_word_embeddings=True, rope_parameters={"rope_theta": c.rope_theta},
    )  # fmt: skip
    with torch.device("meta"):
        model = llama.LlamaForCausalLM(config)
    model.load_state_dict({hf_name(name): checkpoint.tensor(name).dense() for name in checkpoint.entries}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = llama.modeling_llama.LlamaRotaryEmbedding(config)
    with torch.inference_mode():
        return float(model.eval()(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_smollm2_understands_english(smollm2_path: Path):
    """Weights in the wrong places, or q and k left in the file's order, make a fluent model stammer."""
    checkpoint, tokenizer = open_model(smollm2_path)
    text = "The capital of France is Paris, and the capital of Italy is Rome. Water boils at a hundred degrees. Once upon a time there was a king."
    ids = tokenizer.encode(text)
    right, wrong = (loss_in_transformers(replace(checkpoint, are_pairs_interleaved=flag), ids) for flag in (True, False))
    assert right < 3
    assert wrong > right + 1


def test_model_id_changes_with_weights_and_tokenizer(tmp_path: Path):
    metadata, tensors = tiny_llama(np.random.default_rng(0))
    first = open_checkpoint(write(tmp_path / "a.gguf", metadata, tensors)).model_id
    assert open_checkpoint(write(tmp_path / "b.gguf", metadata, tensors)).model_id == first
    other = dict(tensors)
    other["output_norm.weight"] = f32(np.nextafter(tensors["output_norm.weight"].data.view(np.float32), np.float32(9)))
    assert open_checkpoint(write(tmp_path / "c.gguf", metadata, other)).model_id != first
    assert open_checkpoint(write(tmp_path / "d.gguf", metadata | {"tokenizer.ggml.merges": ["a b"]}, tensors)).model_id != first


def test_model_id_of_folder_changes_with_each_file(tmp_path: Path):
    folder = write_folder(tmp_path / "m", weights_of(CONFIG), VALUES, num_shards=2)
    seen = {open_checkpoint(folder).model_id}
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps(VALUES | {"note": name}))
        seen.add(open_checkpoint(folder).model_id)
    weights = weights_of(CONFIG)
    weights["layers.1.down"][0, 0] += 1
    seen.add(open_checkpoint(write_folder(folder, weights, VALUES, num_shards=2)).model_id)
    assert len(seen) == 6


def factors_of(path: Path, metadata: dict[str, object], factors: list[float] | None = None) -> tuple[float, ...] | None:
    values, tensors = tiny_llama(np.random.default_rng(0))
    extra = {} if factors is None else {"rope_freqs.weight": f32(np.array(factors))}
    return open_checkpoint(write(path, values | metadata, tensors | extra)).config.rope_factors


def test_rope_factors_of_gguf(tmp_path: Path):
    path, linear = tmp_path / "m.gguf", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(4)}
    assert factors_of(path, {}) is None
    assert factors_of(path, {}, [1, 1, 2, 8]) == (1, 1, 2, 8)
    assert factors_of(path, linear) == (4, 4, 4, 4)
    assert factors_of(path, linear, [1, 1, 2, 8]) == (4, 4, 8, 32)
    with pytest.raises(Unsupported, match="rope scaling 'dynamic'"):
        factors_of(path, {"llama.rope.scaling.type": "dynamic"})
    for bad in ([1.0] * 3, [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, math.nan, 1.0]):
        with pytest.raises(BadModelFile, match=r"rope_freqs\.weight must hold 4 positive"):
            factors_of(path, {}, bad)


Damage = Callable[[dict[str, object], dict[str, Stored]], object]
BAD_GGUF: dict[str, tuple[type[BadModelFile], Damage]] = {
    "architecture 'mamba'": (Unsupported, lambda m, t: m.update({"general.architecture": "mamba"})),
    "architecture None": (Unsupported, lambda m, t: m.pop("general.architecture")),
    "llama.block_count is None": (BadModelFile, lambda m, t: m.pop("llama.block_count")),
    "llama.embedding_length is 'x'": (BadModelFile, lambda m, t: m.update({"llama.embedding_length": "x"})),
    "head_count is 0": (BadModelFile, lambda m, t: m.update({"llama.attention.head_count": 0})),
    "heads shared evenly": (BadModelFile, lambda m, t: m.update({"llama.attention.head_count_kv": 3})),
    "epsilon is nan": (BadModelFile, lambda m, t: m.update({"llama.attention.layer_norm_rms_epsilon": math.nan})),
    "expert_used_count is None": (BadModelFile, lambda m, t: m.update({"llama.expert_count": 8})),
    "expert_count is 5000; at most": (BadModelFile, lambda m, t: m.update({"llama.expert_count": 5000})),
    "softcapping = 30.0 is not supported": (Unsupported, lambda m, t: m.update({"llama.final_logit_softcapping": 30.0})),
    "dimension_count = 4 differs": (Unsupported, lambda m, t: m.update({"llama.rope.dimension_count": 4})),
    "4000000 layers, but only 11": (BadModelFile, lambda m, t: m.update({"llama.block_count": 4000000})),
    "'blk.1.attn_norm.weight' is missing": (BadModelFile, lambda m, t: m.update({"llama.block_count": 2})),
    "'output_norm.weight' is missing": (BadModelFile, lambda m, t: t.pop("output_norm.weight")),
    "'blk.0.attn_k.weight' has shape": (BadModelFile, lambda m, t: t.update({"blk.0.attn_k.weight": f32(np.ones((8, 32)))})),
    "24 tokens, but token_embd.weight has 25 rows": (BadModelFile, lambda m, t: t.update({"token_embd.weight": f32(np.ones((25, 32)))})),
    "'blk.0.ffn_norm.weight' is stored as Q8_0": (
        Unsupported,
        lambda m, t: t.update({"blk.0.ffn_norm.weight": Stored("Q8_0", (32,), np.zeros(34, dtype=np.uint8))}),
    ),
    r"'blk.0.attn_q_norm.weight' \(1 such\) belongs to no part": (Unsupported, lambda m, t: t.update({"blk.0.attn_q_norm.weight": f32(np.ones(8))})),
}


@pytest.mark.parametrize("message", BAD_GGUF)
def test_bad_gguf_models_are_named(tmp_path: Path, message: str):
    kind, damage = BAD_GGUF[message]
    metadata, tensors = tiny_llama(np.random.default_rng(0))
    damage(metadata, tensors)
    with pytest.raises(kind, match=message):
        open_checkpoint(write(tmp_path / "m.gguf", metadata, tensors))


def test_unknown_tensor_lists_near_ones(tmp_path: Path):
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", *tiny_llama(np.random.default_rng(0))))
    with pytest.raises(UnknownName, match=r"layers\.0\.q"):
        checkpoint.tensor("layers.0.qq")


# ---- Hugging Face folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_folder(tmp_path: Path, dtype: torch.dtype, num_shards: int):
    weights = weights_of(CONFIG, dtype)
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", weights, VALUES, num_shards))
    assert checkpoint.config == CONFIG
    check_equal(checkpoint, weights)
    tensor = checkpoint.tensor("layers.1.down")
    assert tensor.kind == {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert torch.equal(torch.from_numpy(tensor.blocks().copy()).view(dtype), weights["layers.1.down"])


def test_qwen2_folder_is_biased_and_tied(tmp_path: Path):
    config = replace(CONFIG, arch="qwen2", is_qkv_biased=True, is_head_tied=True)
    values = VALUES | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 4096}
    weights = weights_of(config)
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", weights | {"lm_head.weight": torch.zeros(300, 32)}, values))
    assert checkpoint.config == config
    check_equal(checkpoint, weights)


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_llama3_factors_like_transformers():
    rope = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is the reference")
    llama = pytest.importorskip("transformers.models.llama", reason="transformers is the reference")
    config = llama.LlamaConfig(hidden_size=2048, num_attention_heads=32, head_dim=64, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    theirs, _ = rope.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = torch.tensor(llama3_factors(64, 5e5, Fields("config.json", LLAMA3)), dtype=torch.float64)
    ours = 5e5 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64) / factors
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(32)
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-6, atol=0)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_of_folder(tmp_path: Path, key: str):
    def config_with(scaling: dict[str, object]) -> ModelConfig:
        return open_checkpoint(write_folder(tmp_path / "m", weights_of(CONFIG), VALUES | {key: scaling})).config

    assert config_with({"rope_type": "default", "rope_theta": 5e5}).rope_theta == 5e5
    assert config_with({"type": "linear", "factor": 2.0}).rope_factors == (2, 2, 2, 2)
    assert config_with(LLAMA3).rope_factors == llama3_factors(8, 1e4, Fields("", LLAMA3))
    with pytest.raises(Unsupported, match="rope scaling 'dynamic'"):
        config_with({"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(Unsupported, match=r"partial_rotary_factor = 0\.5"):
        config_with({"rope_type": "default", "partial_rotary_factor": 0.5})
    with pytest.raises(BadModelFile, match="low_freq_factor is None"):
        config_with({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"})


BAD_VALUES: dict[str, tuple[type[BadModelFile], dict[str, object]]] = {
    r"architectures \['GPT2LMHeadModel'\]": (Unsupported, {"architectures": ["GPT2LMHeadModel"]}),
    "architectures None": (Unsupported, {"architectures": None}),
    "hidden_act = 'gelu'": (Unsupported, {"hidden_act": "gelu"}),
    "quantization_config": (Unsupported, {"quantization_config": {"bits": 4}}),
    "mlp_bias = True": (Unsupported, {"mlp_bias": True}),
    "hidden_size is -1": (BadModelFile, {"hidden_size": -1}),
    "vocab_size is None": (BadModelFile, {"vocab_size": None}),
    "must be an object": (BadModelFile, {"rope_scaling": [1]}),
    "has shape": (BadModelFile, {"vocab_size": 299}),
    "'lm_head.weight' is missing": (BadModelFile, {"architectures": ["LlamaForCausalLM"], "no head": True}),
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_bad_configs_are_named(tmp_path: Path, message: str):
    kind, changes = BAD_VALUES[message]
    weights = weights_of(CONFIG)
    if "no head" in changes:
        weights.pop("head")
    with pytest.raises(kind, match=message):
        open_checkpoint(write_folder(tmp_path / "m", weights, VALUES | changes))


def test_bad_folders_are_named(tmp_path: Path):
    folder = write_folder(tmp_path / "m", weights_of(CONFIG), VALUES)
    for name, text, message in (
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', r"not '\.\./x\.safetensors'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: no such file"),
        ("model.safetensors.index.json", "[]", "must hold a JSON object"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[" * 100_000, "cannot be read as JSON"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(BadModelFile, match=message) as caught:
            open_checkpoint(folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModelFile, match=r"config\.json: cannot be read"):
        open_checkpoint(tmp_path / "empty")


def test_damaged_safetensors_are_named(tmp_path: Path):
    folder = write_folder(tmp_path / "m", weights_of(CONFIG), VALUES)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for end in (0, 4, 100, len(whole) - 1):
        path.unlink()
        path.write_bytes(whole[:end])
        with pytest.raises(BadModelFile, match=r"model\.safetensors: cannot be read"):
            open_checkpoint(folder)
    path.unlink()
    with pytest.raises(BadModelFile, match=r"no \*\.safetensors"):
        open_checkpoint(folder)
    safetensors.torch.save_file({"x": torch.zeros(2, dtype=torch.int8)}, path)
    with pytest.raises(Unsupported, match="stored as I8"):
        open_checkpoint(folder)


# ---- tokenizers of folders


def write_tokenizer(folder: Path, extra: dict[str, object]) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer, core.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    special = [tokenizers.AddedToken(t, special=True) for t in ("<s>", "</s>", "<|im_end|>")]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["the cat sat on the mat " * 9], trainer)
    core.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(VALUES))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}} | extra))
    return folder


def test_tokenizer_of_folder(tmp_path: Path):
    folder = write_tokenizer(tmp_path / "m", {"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"})
    tokenizer = open_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (300, 0, {1, 2})
    for text in ("the cat, 你好 <s> <think>x</s>", "", "\x00\xff"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    think = tokenizer.core.token_to_id("<think>")
    assert think in tokenizer.encode("a<think>b")
    assert tokenizer.pieces[think] == b"<think>"
    assert tokenizer.pieces[0] == tokenizer.pieces[299] == b""
    assert tokenizer.render((("user", "the"),)) == [0, *tokenizer.encode("the"), 1]
    assert tokenizer.render((("raw", "the"),)) == [0, *tokenizer.encode("the")]


def test_templates_of_folders(tmp_path: Path):
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "the"}]
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "m", {"chat_template": several}))
    assert tokenizer.render((("user", ""),)) == [0, *tokenizer.encode("the")]
    (tmp_path / "m" / "chat_template.jinja").write_text("cat")
    assert open_tokenizer(tmp_path / "m").render((("user", ""),)) == [0, *tokenizer.encode("cat")]


def test_ends_of_folders(tmp_path: Path):
    folder = write_tokenizer(tmp_path / "m", {"eos_token": "</s>"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert open_tokenizer(folder).eos_ids == {1, 2, 5, 7}


@pytest.mark.parametrize("name", [None, 7, "", "<none>", "\ud800", {"content": []}, {}])
def test_odd_names_of_tokens_are_no_tokens(tmp_path: Path, name: object):
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "m", {"bos_token": name, "eos_token": name}))
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids == {2}  # by its well-known name


def test_bad_tokenizers_of_folders_are_named(tmp_path: Path):
    folder = write_tokenizer(tmp_path / "m", {})
    for size in (100, 2**40, None):
        (folder / "config.json").write_text(json.dumps(VALUES | {"vocab_size": size}))
        with pytest.raises(BadModelFile, match=f"the model's vocab_size is {size}"):
            open_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(BadModelFile, match=r"tokenizer\.json: cannot be read"):
        open_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadModelFile, match=r"tokenizer\.json: cannot be read"):
        open_tokenizer(folder)
