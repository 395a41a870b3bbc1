"""The sections of docs/cache.md on predicted keys and on longer prompts: every number in them is a row's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from lib.predictor_section import cell, section

FOUND = {"kl": 0.5, "agreement": 0.7, "blind_kl": 1.5, "blind_agreement": 0.3, "first_kl": 0.9, "first_agreement": 0.6, "keys": 0.4}
TRAINED = {
    "what": "train", "layers": 10, "pick": "first", "rank": 16, "length": 512, "held_out": 16384, "file_mb": 7.15, "num_tokens": 3_140_000,
    "seconds": 40.2, "device": "cuda", "begun": FOUND | {"kl": 6.5}, "mapped": FOUND | {"kl": 1.25}, "trained": FOUND,
}  # fmt: skip
RECALL = {
    "what": "recall", "trained_len": 256, "steps": 900, "n": 100, "len": 1024, "plain": 0.2, "dual_chunk": 1.0, "sparse": 0.97, "sparse_within": 0.41,
    "sparse_met": 0.333, "sparse_one_look": 0.9, "sparse_one_look_within": 0.4, "sparse_one_look_met": 0.3, "sparse_continuous": 0.9,
    "sparse_continuous_within": 0.4, "sparse_continuous_met": 0.3, "sparse_99": 0.9, "sparse_99_within": 0.4, "sparse_99_met": 0.3,
}  # fmt: skip


def test_rows_become_lines():
    timed = [
        {"what": "prefill", "tokens": 4096, "n": 3, "layers": n, "seconds": s, "flops": f, "nbytes": 95.8e6}
        for n, s, f in ((None, 4, 2e12), (10, 2, 1e12))
    ]
    text = section([TRAINED, *timed], [RECALL])
    assert "| 10, first | 3.14 M, 40 (cuda) | 16384 | 6.50, 70 % | 1.25, 70 % | 0.50, 70 % | 1.50, 30 % | 0.90, 60 % | 7.15 |" in text
    assert "| 10 | 2.00 | 1000 | 50 % | 95.8 |" in text
    assert "| 1024 | sparse, mass 0.95, refined | 97 [92, 99] | 41 [32, 51] | 33 |" in text
    assert "| 1024 | plain | 20 [13, 29] | the same | 100 |" in text


def test_what_was_not_measured_is_not_there():
    text = section([], [])
    assert "Predicted keys" in text
    assert "|" not in text
    assert "Longer than" not in text
    assert "sparse" not in section([], [{name: x for name, x in RECALL.items() if not name.startswith("sparse")}])


def test_an_interval_is_wilsons():
    assert cell(1.0, 100) == "100 [96, 100]"
    assert cell(0.0, 20) == "0 [0, 16]"
