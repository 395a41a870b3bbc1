"""Prompts of several kinds and lengths, for laws that want variety and not sense."""

import random

from ponder.core.asks import Prompt, chat

TEXT = "river stone seven copper lamp garden under quickly Monday music paper window 12 47 price of the and a to"
KINDS = (
    "Repeat this text word for word: {}",
    "Write a short story about: {}",
    "Fix the code:\ndef f(x):\n    return x + {}\n\nprint(f(3))\nExplain.",
    "What is 17 + {}? Think step by step.",
    "Summarise: {0}. {0}.",
)


def varied_prompts(num: int, max_tokens: int) -> list[Prompt]:
    rng, words = random.Random(0), TEXT.split()
    return [chat(KINDS[i % len(KINDS)].format(" ".join(rng.choices(words, k=rng.randint(5, 60)))), max_tokens=max_tokens) for i in range(num)]
