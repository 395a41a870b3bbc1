"""Prompts of an exact number of tokens, all different, the same for every engine: as text for ours, as ids for the others.

Prose from a small grammar, seeded; its text must come back as the same ids, or the next seed is tried.
"""

import random
from collections.abc import Sequence

from ponder.models.tokenizer import TextTokenizer

NAMES = ("Anna", "the old captain", "my neighbour", "a young engineer", "the baker", "Doctor Weber", "the twins", "a tired teacher", "the painter")
DEEDS = ("walked slowly to", "had often dreamed of", "wrote a long letter about", "could not forget", "measured the height of", "drew a map of")
THINGS = ("the lighthouse", "the river in spring", "a garden behind the station", "the small harbour", "an empty library", "the mountain road")
ENDS = (
    "because the rain had stopped", "while everybody else was asleep", "and told nobody about it", "long before the bridge was built",
    "although the winter was cold", "as soon as the train had left", "and counted every step", "with a lantern and two dogs",
)  # fmt: skip


def prose(seed: int, num_sentences: int) -> str:
    draw = random.Random(seed)
    sentences = (f"{draw.choice(NAMES)} {draw.choice(DEEDS)} {draw.choice(THINGS)} {draw.choice(ENDS)}." for _ in range(num_sentences))
    return f"Chapter {seed}. " + " ".join(s[0].upper() + s[1:] for s in sentences)


def exact_prompt(tokenizer: TextTokenizer, seed: int, num_tokens: int) -> dict[str, object]:
    """{"text", "ids"} with len(ids) == num_tokens. Prompts of different seeds differ from the second token on."""
    for attempt in range(100):
        ids = tokenizer.render((("raw", prose(seed * 100 + attempt, num_tokens // 8 + 2)),))[:num_tokens]
        text = tokenizer.decode(ids)
        if len(ids) == num_tokens and tokenizer.render((("raw", text),)) == ids:
            return {"text": text, "ids": ids}
    raise ValueError(f"no prose of exactly {num_tokens} tokens from seed {seed} comes back as the same ids; take another number of tokens")


def poisson(seed: int, num: int, rate: float) -> list[float]:
    """Arrival times in seconds from the first request, which comes at once; rate: requests a second."""
    draw = random.Random(seed)
    times = [0.0]
    while len(times) < num:
        times.append(times[-1] + draw.expovariate(rate))
    return times


def mixed_lengths(seed: int, num: int, longest: int, most_new: int) -> tuple[Sequence[int], Sequence[int]]:
    """(prompt tokens, new tokens) of each request: one in four has a long prompt, the others an eighth to a quarter of it."""
    draw = random.Random(seed)
    lens = [longest - draw.randrange(longest // 4) if i % 4 == 2 else draw.randrange(longest // 8, longest // 4 + 1) for i in range(num)]
    return lens, [draw.randrange(max(2, most_new // 2), most_new + 1) for _ in range(num)]
