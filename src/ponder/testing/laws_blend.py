"""Laws of blends: two models that draw every token together. A law raises AssertionError saying what it found.

A law takes the blend and its definition in plain numbers: log-probabilities of the next tokens under either model -> unnormalised
probabilities under both. Answers of two toy models are enumerated; mutants are in tests/testing/test_laws_blend.py.

Shapes: R rows, V tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.asks import Extend, Extension, Prefix, Prompt
from ponder.core.blend import Blend
from ponder.core.rng import hash_seed
from ponder.testing.exact import TOLERANCE, Measure, added, difference, expected_distribution, require
from ponder.testing.run import answer_turn
from ponder.testing.toy import SmallLM, ToyLM, ToyProcess, toy_lm

Defined = Callable[[Sequence[float], Sequence[float]], list[float]]
FIRST, SECOND = toy_lm("ab", 3), toy_lm("ab", 8)
PROMPT = Prompt(messages=(("user", "a"),), max_tokens=4)


@dataclass(frozen=True)
class ToyPair(SmallLM):
    """Two toy models of one alphabet, and how they are blended."""

    first: ToyLM
    second: ToyLM
    blend: Blend

    @property
    def alphabet(self) -> str:  # type: ignore[override]
        return self.first.alphabet

    @property
    def key(self) -> int:
        return hash_seed(self.first.key, self.second.key, repr(self.blend))

    def encode(self, text: str) -> list[int | None]:
        return self.first.encode(text)

    def log_p(self, prefix: Prefix) -> tuple[float, ...]:
        return self._mixed(self.first.log_p(prefix), self.second.log_p(prefix))

    def row(self, last: int | None) -> tuple[float, ...]:
        return self._mixed(self.first.row(last), self.second.row(last))

    def _mixed(self, first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
        logits = self.blend.mix(*(torch.tensor([row], dtype=torch.float64) for row in (first, second)))
        return tuple(logits.log_softmax(-1)[0].tolist())


def law_answers_are_as_defined(blend: Blend, defined: Defined) -> None:
    """Whole answers of two toy models, over every random path: each token with the probability that the definition gives it."""
    pair = ToyPair(FIRST, SECOND, blend)

    def text_of(answer: object) -> str:
        assert isinstance(answer, Extension)
        return f"{answer.prefix.text}/{answer.finish}"

    found = expected_distribution(lambda rng: text_of(answer_turn([Extend(prefix=Prefix(PROMPT), seed=0)], ToyProcess(pair, rng))[0])).measure
    wanted: Measure = {}
    open_ends = [(Prefix(PROMPT), 1.0)]
    while open_ends:
        prefix, mass = open_ends.pop()
        if prefix.is_final:
            added(wanted, f"{prefix.text}/{prefix.finish}", mass)
            continue
        weights = defined(FIRST.log_p(prefix), SECOND.log_p(prefix))
        open_ends += [(FIRST.grown(prefix, token), mass * w / sum(weights)) for token, w in enumerate(weights) if w > 0]
    worst = difference(found, wanted)
    require(worst <= TOLERANCE, f"answers differ from the definition's by {worst:.2e}: {found}, wanted {wanted}")


def law_rows_stand_apart(blend: Blend, defined: Defined) -> None:
    """A row's logits do not depend on other rows, the arguments stay, and what is added to a whole row changes no probability."""
    first, second = rows(0), rows(1)
    kept = first.clone(), second.clone()
    mixed = blend.mix(first, second)
    require(torch.equal(first, kept[0]) and torch.equal(second, kept[1]), "the arguments were changed")
    for i in range(len(first)):
        alone = blend.mix(first[i : i + 1], second[i : i + 1])
        require(torch.equal(alone, mixed[i : i + 1]), f"row {i} alone is {alone}, beside others {mixed[i]}")
    for moved in (blend.mix(first + 5.0, second), blend.mix(first, second - 3.0)):
        worst = float((moved.softmax(-1) - mixed.softmax(-1)).abs().max())
        require(worst <= TOLERANCE, f"a constant for a whole row changes probabilities by {worst:.2e}")


def law_a_draw_is_possible(blend: Blend, defined: Defined) -> None:
    """No row is ruled out whole, however much the models differ, and no logit is NaN or +inf."""
    for first, second in ((rows(2) * 30, rows(3) * 30), (rows(4), -1000 * rows(4)), (torch.zeros(1, 7).double(), rows(5)[:1])):
        mixed = blend.mix(first, second)
        require(not bool((mixed.isnan() | mixed.isposinf()).any()), f"logits {mixed} of {first} and {second}")
        require(bool(mixed.isfinite().any(-1).all()), f"a row of {mixed} has no token left")


def law_a_model_with_itself(blend: Blend, defined: Defined) -> None:
    """Two equal models say what one says, of the tokens that are not ruled out."""
    first = rows(6)
    mixed = blend.mix(first, first.clone())
    kept = first.masked_fill(mixed.isneginf(), -math.inf)
    worst = float((mixed.softmax(-1) - kept.softmax(-1)).abs().max())
    require(worst <= TOLERANCE, f"a model with itself differs from itself by {worst:.2e}")


def law_unit(blend: Blend) -> None:
    """Of a blend that is set to leave the first model alone: its logits, bit for bit."""
    for kind in (torch.float32, torch.float64):
        first, second = rows(7).to(kind), rows(8).to(kind) * 9
        mixed = blend.mix(first, second)
        require(torch.equal(mixed, first), f"{mixed} is not the first model's {first}, bit for bit")


def rows(seed: int) -> Tensor:
    """float64 [5, 7]"""
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAWS = (law_answers_are_as_defined, law_rows_stand_apart, law_a_draw_is_possible, law_a_model_with_itself)
