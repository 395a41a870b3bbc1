"""What a task is: items with a prompt and a reference, and an exact scorer.

The split of an item is a pure function of its key, so it never changes when a task grows, and "dev" (choose recipes, fit
calibration) and "test" (report) share no item.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ponder.core.asks import Candidate, Prompt
from ponder.core.errors import BadField
from ponder.core.roles import Verifier

SPLITS = ("dev", "test")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `reference` is what the scorer compares with: the gold answer, or the tests of a program."""

    id: str
    prompt: Prompt
    reference: str


class Task(Protocol):
    """Questions with an exact scorer. Items of both splits come in a fixed pseudo-random order, so the first n are a sample.

    `items` may download once (PonderError when it cannot); `score` is pure but for the time limit of its checker.
    """

    @property
    def name(self) -> str: ...

    def items(self, split: str) -> tuple[Item, ...]:
        """All items of "dev" or "test"; BadField for another word."""
        ...

    def scorer(self, item: Item) -> Verifier:
        """The verifier that says 1.0 for a right answer; it knows the reference."""
        ...

    def score(self, item: Item, text: str) -> bool:
        """True when `text` answers the item. Never raises for a strange text."""
        ...


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def split_of(key: str) -> str:
    """ "dev" or "test", half each, by the last bit of the key's SHA-256."""
    return SPLITS[digest(key)[-1] & 1]


def in_split(items: Iterable[Item], split: str, task: str) -> tuple[Item, ...]:
    """The items of one split, in the order of their hashes."""
    check_split(split)
    keyed = ((f"{task}/{item.id}", item) for item in items)
    return tuple(item for _, item in sorted(((digest(k), i) for k, i in keyed if split_of(k) == split), key=lambda pair: pair[0]))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise BadField(f"split {split!r}: must be 'dev' (choose and calibrate) or 'test' (report)")


def judged_right(scorer: Verifier, item: Item, text: str) -> bool:
    """Whether a scorer that asks nothing of a model gives `text` the value 1."""
    candidate = Candidate(text, item.prompt.answers.read(text))
    (verdict,) = scorer.judge(item.prompt, (candidate,), ())
    return verdict.value == 1.0
