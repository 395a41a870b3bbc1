"""`ponder profile` as a person meets it: predictions for machines and models that are not here, a real one, clear mistakes."""

import json
import subprocess
import sys

import pytest

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
}  # fmt: skip
CARD = {"name": "a large card", "bandwidth": [[1e6, 4.8e12]], "peaks": {"bfloat16": 989e12}, "weight_nbytes": {"bf16": 2.0}}


def profile(*args, cwd):
    command = [sys.executable, "-m", "ponder.cli", "profile", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL, cwd=cwd)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    return tmp_path


def test_a_model_and_a_machine_that_are_not_here(files):
    done = profile("config.json", "--card", "card.json", "--weights", "bf16", "--batch", 16, "--context", 2048, cwd=files)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines() if "│" in line]
    (figures,) = [row for row in rows if row[1] == "whole"]
    read = 2 * (69.5e9 + 16 * 2048 * 80 * 2 * 8 * 128) / 4.8e12  # seconds of weights and keys at the card's bandwidth
    assert figures[2] == "-" and float(figures[3]) == pytest.approx(1e3 * read, rel=0.05)
    assert all(word in done.stdout for word in ("attention", "gate_up", "norms/rope", "a large card", "memory 4800.0 GB/s"))
    assert (files / "out" / "profile.png").stat().st_size > 10_000


BAD = [
    (("config.json", "--card", "card.json", "--weights", "int4"), "no weight format 'int4'; it has bf16"),
    (("config.json", "--card", "card.json", "--weights", "bf17"), "unknown weight format 'bf17'"),
    (("config.json", "--card", "nothing.json", "--weights", "bf16"), "nothing.json: No such file"),
    (("config.json", "--card", "config.json", "--weights", "bf16"), "machine card config.json is none"),
    (("card.json",), "card.json"),
    (("config.json", "--card", "card.json", "--weights", "bf16", "--batch", "0"), "at least 1"),
    (("config.json", "--card", "card.json", "--weights", "bf16", "--context", "-5"), "at least 1"),
    (("no/config.json", "--card", "card.json", "--weights", "bf16"), "no/config.json"),
    (("config.json", "--card", "card.json", "--weights", "bf16", "--context", "200000"), "holds 131072"),
]


@pytest.mark.parametrize("args, says", BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else None)
def test_a_mistake_is_one_clear_line(files, args, says):
    done = profile(*args, cwd=files)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr and done.stdout == ""
    assert not (files / "out").exists()


def test_a_context_beyond_the_models(smollm2_path, tmp_path):
    done = profile("smollm2-135m", "--context", 8192, cwd=tmp_path)
    assert done.returncode == 2 and "8192 tokens can be profiled" in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_real_model(smollm2_path, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    done = profile("smollm2-135m", "--batch", 2, "--context", 256, "--weights", "int4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("qkv", "attention", "head", "sampling", "python", "tokenizer", "whole / roofline", "step loop in Python", "million characters/s"):
        assert word in done.stdout
    assert (tmp_path / "out" / "profile.png").exists()
