"""SmolLM2 with a drafter: the tokens, texts and log-probabilities of plain decoding, bit for bit, greedy and sampled."""

from pathlib import Path

import pytest

from ponder.catalogue import open_model
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Extension, Prefix, Sampling
from ponder.testing.prompts import varied_prompts
from ponder.testing.run import answer_turn


@pytest.mark.parametrize("num", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("draft", ["ngram:shortest=1/coupled/fixed:num=6"])
def test_answers_are_plain_decodings(smollm2_path: Path, num: int, draft: str):
    prompts = varied_prompts(num, max_tokens=40)
    asks = [Extend(prefix=Prefix(p), seed=i, sampling=Sampling(temperature=(0.0, 0.7, 1.0)[i % 3])) for i, p in enumerate(prompts)]
    plain, drafting = open_model(smollm2_path), open_model(smollm2_path, accelerations=Accelerations(draft=draft))
    for start in range(0, num, 8):
        some = asks[start : start + 8]
        for a, b in zip(answer_turn(some, plain), answer_turn(some, drafting), strict=True):
            assert isinstance(a, Extension) and isinstance(b, Extension)
            assert a.prefix == b.prefix and a.finish == b.finish
    assert drafting.totals.accepted_tokens > num
