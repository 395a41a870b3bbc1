"""Recall in a made-up language: pairs of a key and a value among filler, and questions that ask for the values of one or several keys.

    context   w07 w91 K13 V40 w22 ... w05 K58 V02 w64
    question  ? K13 K58 =
    answer    K13 V40 K58 V02 .

A pair is `K13 V40`. Nothing but the context says which value a key has, and values are drawn evenly, so that whoever does not find the
pair is right once in 64 times.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

NUM_KEYS = NUM_VALUES = 64
NUM_FILLERS = 120
ASK, GIVE, STOP, END = range(NUM_KEYS + NUM_VALUES + NUM_FILLERS, NUM_KEYS + NUM_VALUES + NUM_FILLERS + 4)
VOCAB = 256  # the last four mean nothing
WORDS = (
    *(f"K{i:02}" for i in range(NUM_KEYS)), *(f"V{i:02}" for i in range(NUM_VALUES)), *(f"w{i:03}" for i in range(NUM_FILLERS)), "?", "=", ".",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """A context, and the pairs in it: key token -> value token."""

    context: list[int]
    pairs: dict[int, int]
    starts: list[int]  # where a unit (a pair or a filler) begins

    def question(self, keys: list[int]) -> list[int]:
        return [ASK, *keys, GIVE]

    def answer(self, keys: list[int]) -> list[int]:
        return [token for key in keys for token in (key, self.pairs[key])] + [STOP]


def world(rng: random.Random, length: int, num_pairs: int) -> World:
    """`length` tokens with pairs of different keys at even random places."""
    keys = rng.sample(range(NUM_KEYS), num_pairs)
    pairs = {key: NUM_KEYS + rng.randrange(NUM_VALUES) for key in keys}
    num_units = length - num_pairs
    places = dict(zip(rng.sample(range(num_units), num_pairs), keys, strict=True))
    context, starts = [], []
    for unit in range(num_units):
        starts.append(len(context))
        if unit in places:
            context += [places[unit], pairs[places[unit]]]
        else:
            context.append(NUM_KEYS + NUM_VALUES + rng.randrange(NUM_FILLERS))
    return World(context, pairs, starts)


def text_of(tokens: list[int]) -> str:
    """Words, each with a space before it."""
    return "".join(" " + WORDS[token] for token in tokens)


def write_tokenizer(folder: Path) -> None:
    """Files of a tokenizer with a token for each word; a conversation is its texts, one after the other."""
    vocab = {"\u0120" + word: i for i, word in enumerate(WORDS)}
    end = "<|end|>"
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": END, "content": end, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": " [^ ]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": True, "vocab": vocab | {end: END}, "merges": [],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"eos_token": end, "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
