"""Law of length controls that stop a draft by a threshold: with known chances no way of stopping gives tokens for less.

A draft is a small decision process: every guess is of a kind, drawn anew, that says how likely it is accepted when all before it
are; a guess costs `draft`, a round costs 1. All ways of stopping are listed, by what they have seen. Mutants are in
tests/accelerate/test_specdecpp.py.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ponder.core.draft import Guess, LengthControl
from ponder.testing.exact import TOLERANCE, require
from ponder.testing.laws_draft import EVEN

Kinds = tuple[float, ...]  # chances of the guesses of a draft so far


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """kinds: chance of acceptance -> how often a guess is of that kind. most: guesses of the longest draft."""

    kinds: dict[float, float]
    draft: float
    most: int = 3

    def cost_per_token(self, goes_on: Callable[[Kinds], bool]) -> float:
        """Of rounds that stop so, in the long run."""
        cost = tokens = 0.0
        for path in itertools.product(self.kinds, repeat=self.most):
            num = next((n for n in range(1, self.most) if not goes_on(path[:n])), self.most)
            mass = math.prod(self.kinds[kind] for kind in path)
            cost += mass * (1 + num * self.draft)
            tokens += mass * (1 + sum(math.prod(path[:n]) for n in range(1, num + 1)))
        return cost / tokens

    def best(self) -> float:
        """Of all ways of stopping."""
        seen = [path for n in range(1, self.most) for path in itertools.product(self.kinds, repeat=n)]
        ways = (dict(zip(seen, going)) for going in itertools.product((True, False), repeat=len(seen)))
        return min(self.cost_per_token(way.__getitem__) for way in ways)

    def of(self, control: LengthControl) -> float:
        """Of what a control decides, which is shown the kinds as the drafter's chances."""

        def goes_on(path: Kinds) -> bool:
            controlling, guesses = control.open(lambda: EVEN), [Guess(0, kind, None, torch.zeros(1)) for kind in path]
            return [controlling.goes_on([0], [guesses[: n + 1]])[0] for n in range(len(guesses))][-1]

        return self.cost_per_token(goes_on)


DRAFTS = (
    Drafts(kinds={0.95: 0.5, 0.5: 0.5}, draft=0.2),
    Drafts(kinds={0.98: 0.3, 0.8: 0.4, 0.3: 0.3}, draft=0.3),
    Drafts(kinds={0.9: 0.7, 0.75: 0.3}, draft=0.35),
)


def law_a_threshold_is_the_best_way_to_stop(family: Callable[[float], LengthControl]) -> None:
    """Some threshold costs what the best of all ways of stopping costs, to rounding; family: threshold -> control."""
    for drafts in DRAFTS:
        best, found = drafts.best(), min(drafts.of(family(threshold / 50)) for threshold in range(51))
        require(found <= best + TOLERANCE, f"{drafts}: the best threshold costs {found} a token, the best way of stopping {best}")
