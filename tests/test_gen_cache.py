"""The matrix of pairs covers the catalogue, and what a law found wrong, or a technique that nobody ran, is noticed."""

import gen_cache
from ponder.catalogue import ATTENTION_PLANS, CACHES, STRATEGIES

RIGHT = {"speculation": "refused", "sharing": "same", "chunks": "same", "batching": "same", "strategies": f"all {len(STRATEGIES)}"}
PAIRS = {name: {"technique": name, **RIGHT} for name in [*(f"cache {n}" for n in CACHES), *(f"attend {n}" for n in ATTENTION_PLANS)]}


def test_the_page_is_current():
    assert gen_cache.main(["--check"]) == 0


def test_what_is_missing_or_wrong_is_noticed():
    assert gen_cache.mistakes(PAIRS) == []
    less = {name: row for name, row in PAIRS.items() if name != "attend quest"}
    assert ["attend quest has no row" in line for line in gen_cache.mistakes(less)] == [True]
    for cell, found in (("batching", "1 of 4 differ"), ("strategies", "37, without greedy")):
        wrong = PAIRS | {"cache h2o": {**PAIRS["cache h2o"], cell: found}}
        assert gen_cache.mistakes(wrong) == [f"cache h2o with {cell}: {found}"]


def test_the_newest_row_of_each_counts():
    text = gen_cache.sections(
        {"recall plain": {"what": "recall", "plan": "plain", "right": 0.5, "low": 0.4, "high": 0.6, "keys_met": 1.0, "trained_len": 64}}, PAIRS
    )
    assert "| plain | 50.0 [40.0, 60.0] | 100.0 |" in text
    assert f"| cache h2o | refused | same | same | same | all {len(STRATEGIES)} |" in text
