"""SmolLM2 with a drafter: the tokens, texts and log-probabilities of plain decoding, bit for bit, greedy and sampled."""

import random
from pathlib import Path

import pytest

from ponder.catalogue import open_model
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Extend, Extension, Prefix, Prompt, Sampling, chat
from ponder.testing.run import answer_turn

TEXT = "river stone seven copper lamp garden under quickly Monday music paper window 12 47 price of the and a to"
WORDS = TEXT.split()
KINDS = (
    "Repeat this text word for word: {}",
    "Write a short story about: {}",
    "Fix the code:\ndef f(x):\n    return x + {}\n\nprint(f(3))",
    "What is 17 + {}? Think step by step.",
    "Summarise: {0}. {0}.",
)


def prompts(num: int) -> list[Prompt]:
    rng = random.Random(0)
    return [chat(KINDS[i % len(KINDS)].format(" ".join(rng.choices(WORDS, k=rng.randint(5, 60)))), max_tokens=40) for i in range(num)]


@pytest.mark.parametrize("num", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("draft", ["ngram:shortest=1/coupled/fixed:num=6"])
def test_answers_are_plain_decodings(smollm2_path: Path, num: int, draft: str):
    asks = [Extend(prefix=Prefix(p), seed=i, sampling=Sampling(temperature=(0.0, 0.7, 1.0)[i % 3])) for i, p in enumerate(prompts(num))]
    plain, drafting = open_model(smollm2_path), open_model(smollm2_path, accelerations=Accelerations(draft=draft))
    for start in range(0, num, 8):
        some = asks[start : start + 8]
        for a, b in zip(answer_turn(some, plain), answer_turn(some, drafting), strict=True):
            assert isinstance(a, Extension) and isinstance(b, Extension)
            assert a.prefix == b.prefix and a.finish == b.finish
    assert drafting.totals.accepted_tokens > num
