"""The commands as a person meets them: exit codes, one clear line for every mistake, nothing lost on Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PONDER = (sys.executable, "-m", "ponder.cli")


def ponder(*args, **settings):
    settings = {"capture_output": True, "text": True, "timeout": 240, "stdin": subprocess.DEVNULL} | settings
    return subprocess.run([*PONDER, *map(str, args)], **settings)


BAD = [
    (("ask", "hi", "--model", "smolm2-135m"), "unknown model 'smolm2-135m'; did you mean smollm2-135m"),
    (("ask", "hi", "--model", "no/such/file.gguf"), "no such file"),
    (("ask", "hi", "--strategy", "best_of_m"), "unknown strategy 'best_of_m'; did you mean best_of_n"),
    (("ask", "hi", "--strategy", "best_of_n:nun=3"), "unknown field of strategy best_of_n 'nun'; did you mean num"),
    (("ask", "hi", "--strategy", "best_of_n:num=0"), "must be at least 1"),
    (("ask", "hi", "--strategy", "best_of_n:temperature=-1"), "must be between 0 and 100"),
    (("ask", "hi", "--strategy", "best_of_n:verifier=oracle"), "unknown verifier 'oracle'"),
    (("ask", "hi", "--budget", "20 tokns"), "expected NUMBER UNIT"),
    (("ask", "hi", "--budget", "0 s"), "must be a positive number"),
    (("ask", "hi", "--budget", "3 tokens"), "cannot pay one step"),
    (("ask", "hi", "--answer", "nubmer"), "did you mean number"),
    (("ask", "hi", "--weights", "int5"), "unknown weight format 'int5'"),
    (("ask", "hi", "--device", "gpu"), "device='gpu': must be 'cpu', 'cuda' or 'cuda:N'"),
    (("ask", "hi", "--device", "cuda:99"), "device='cuda:99': "),
    (("compare", "--task", "rg:chain_sum", "--n", "1", "--device", "cuda:99"), "device='cuda:99': "),
    (("ask", "hi", "--max-tokens", "0"), "max_tokens=0"),
    (("ask", " "), "the question is empty"),
    (("compare", "--task", "gsm9k"), "did you mean gsm8k"),
    (("compare", "--task", "rg:chain_sums"), "did you mean rg:chain_sum"),
    (("compare", "--task", "rg:chain_sum", "--n", "0"), "n=0"),
    (("compare", "--task", "rg:chain_sum", "--split", "train"), "must be 'dev'"),
    (("compare", "--task", "rg:chain_sum", "--strategies", ","), "name at least one"),
    (("pull", "smollm2-134m"), "did you mean smollm2-135m"),
]


@pytest.mark.parametrize("args, says", BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else None)
def test_a_mistake_is_one_clear_line_and_exit_code_2(smollm2_path, tmp_path, args, says):
    done = ponder(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not list(tmp_path.iterdir()), "something was begun before the mistake was found"


def test_an_unknown_option_is_refused():
    done = ponder("ask", "hi", "--stratgy", "greedy")
    assert done.returncode == 2 and "--stratgy" in done.stderr


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_damaged_model_files(smollm2_path, tmp_path, damage):
    data = bytearray(smollm2_path.read_bytes()[: 50_000_000 if damage == "truncated" else None])
    if damage == "text":
        data = bytearray(b"not a model\n" * 1000)
    if damage == "flipped":
        data[8:16] = b"\xff" * 8  # number of tensors
    (tmp_path / "m.gguf").write_bytes(data)
    done = ponder("ask", "hi", "--model", tmp_path / "m.gguf")
    assert done.returncode == 2 and "m.gguf" in done.stderr and "Traceback" not in done.stderr


def test_a_prompt_longer_than_the_context(smollm2_path):
    done = ponder("ask", "-", stdin=None, input="word " * 9000)
    assert done.returncode == 2 and "context" in done.stderr and "Traceback" not in done.stderr


def test_an_attention_plan_by_its_name(smollm2_path):
    done = ponder("ask", "hi", "--max-tokens", "4", "--attend", "vertical_slash:mass=0.9")
    assert done.returncode == 0
    done = ponder("ask", "hi", "--attend", "vertical_slosh")
    assert done.returncode == 2 and "vertical_slash" in done.stderr and "Traceback" not in done.stderr


def test_a_context_that_was_asked_for(smollm2_path):
    done = ponder("ask", "word " * 40, "--context", "40")
    assert done.returncode == 2 and "context holds 40" in done.stderr and "Traceback" not in done.stderr
    done = ponder("ask", "hi", "--context", "9000")
    assert done.returncode == 2 and "context_len is 9000" in done.stderr and "Traceback" not in done.stderr


def test_ask_says_answer_certainty_cost_and_why_it_stopped(smollm2_path, tmp_path):
    trace = tmp_path / "t.jsonl"
    done = ponder("ask", "What is the capital of France?", "--strategy", "self_consistency:num=4", "--max-tokens", "24", "--trace", trace)
    assert done.returncode == 0, done.stderr
    for word in ("answer", "how sure", "cost", "tokens", "stopped", "finished within the budget"):
        assert word in done.stdout
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(lines) == 6 and lines[-1]["stop_reason"] == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk(smollm2_path):
    done = ponder("ask", "hi", "--max-tokens", "2", "--trace", "/dev/full")
    assert done.returncode == 2 and "free disk space" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_gives_the_best_answer_so_far(smollm2_path):
    asking = subprocess.Popen(
        [*PONDER, "ask", "Tell a long story.", "--max-tokens", "4000", "--strategy", "particle_filter:num=8,step_tokens=8", "--budget", "1e6 tokens"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in asking.stderr:
        if "is thinking" in line:
            break
    time.sleep(3)
    asking.send_signal(signal.SIGINT)
    out, err = asking.communicate(timeout=60)
    assert asking.returncode == 130, err
    assert "best answer so far" in out and "Traceback" not in err


def test_lists(smollm2_path):
    assert "smollm2-135m" in ponder("models").stdout
    assert "gsm8k" in ponder("tasks").stdout
    shown = ponder("strategies").stdout
    assert "particle_filter (biased)" in shown and "systematic" in shown and "greedy (exact)" in shown
    assert ponder("--version").stdout.strip()


def test_compare_and_resume(smollm2_path, tmp_path):
    args = ("compare", "--task", "rg:basic_arithmetic", "--n", "3", "--strategies", "greedy;self_consistency:num=3", "--out", tmp_path / "o")
    first = ponder(*args)
    assert first.returncode == 0, first.stderr
    assert "oracle" in first.stdout and "self_consistency:num=3: " in first.stdout
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert {"run.json", "results.jsonl", "trace.jsonl", "samples.sqlite", "summary.json", "quality.png", "timing.jsonl"} <= names
    before = [(tmp_path / "o" / name).read_bytes() for name in ("results.jsonl", "trace.jsonl")]
    assert ponder(*args).returncode == 2, "an old run was overwritten"
    assert ponder(*args, "--resume").returncode == 0
    assert [(tmp_path / "o" / name).read_bytes() for name in ("results.jsonl", "trace.jsonl")] == before


def test_the_default_model_is_the_catalogues():
    from ponder import catalogue
    from ponder.cli.main import DEFAULT_MODEL

    assert DEFAULT_MODEL == catalogue.DEFAULT_MODEL


def test_settings_have_one_name_in_every_process():
    """The demo's folder was named after function addresses once, so that a second run began anew."""
    script = "from ponder import catalogue; from ponder.run.recipe import describe; print(describe(list(catalogue.STRATEGIES.values())))"
    first, second = (subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second and "ParticleFilter" in first and " at 0x" not in first


def test_strategies_are_listed_two_lines_each():
    """Templates among their fields are shown by how they begin, and no bracket in them is taken for markup."""
    from ponder import catalogue

    done = ponder("strategies")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "self_refine (biased)" in lines
    assert all(line.startswith("    ") for line in lines[1 : 2 * len(catalogue.STRATEGIES) : 2])
    assert all(not line.startswith(" ") for line in lines[: 2 * len(catalogue.STRATEGIES) : 2])
