"""Wrong blends, each of which a law of ponder.testing.laws_blend must find out."""

import math
from dataclasses import dataclass

import pytest
import torch

from ponder.core.guarantee import Guarantee
from ponder.testing import laws_blend

WEIGHT, ALPHA = 0.5, 0.5


def defined(first, second):
    top = max(first)
    return [math.exp((1 + WEIGHT) * a - WEIGHT * b) if a >= top + math.log(ALPHA) else 0.0 for a, b in zip(first, second)]


@dataclass(frozen=True)
class Wrong:
    """Contrastive decoding with one mistake."""

    mistake: str = ""
    guarantee = Guarantee.BIASED

    def mix(self, first, second):
        if self.mistake == "keeps the amateur's favourites":
            kept = second >= second.amax(-1, keepdim=True) + math.log(ALPHA)
        elif self.mistake == "one threshold for all rows":
            kept = first >= first.max() + math.log(ALPHA)
        elif self.mistake == "an absolute threshold":
            kept = first >= math.log(ALPHA)
        elif self.mistake == "a strict threshold":
            kept = first > first.amax(-1, keepdim=True)
        else:
            kept = first >= first.amax(-1, keepdim=True) + math.log(ALPHA)
        if self.mistake == "no threshold":
            kept = torch.ones_like(kept)
        if self.mistake == "adds the amateur":
            mixed = (1 - WEIGHT) * first + WEIGHT * second
        elif self.mistake == "mixes probabilities":
            mixed = ((1 + WEIGHT) * first.softmax(-1) - WEIGHT * second.softmax(-1)).clamp(min=1e-9).log()
        elif self.mistake == "takes the whole amateur away":
            mixed = first - WEIGHT * second
        else:
            mixed = (1 + WEIGHT) * first - WEIGHT * second
        if self.mistake == "changes its argument":
            first.masked_fill_(~kept, -1e9)
        return mixed.masked_fill(~kept, -math.inf)


MISTAKES = {
    "keeps the amateur's favourites": "law_answers_are_as_defined",
    "one threshold for all rows": "law_rows_stand_apart",
    "an absolute threshold": "law_rows_stand_apart",
    "a strict threshold": "law_a_draw_is_possible",
    "no threshold": "law_answers_are_as_defined",
    "adds the amateur": "law_answers_are_as_defined",
    "mixes probabilities": "law_answers_are_as_defined",
    "takes the whole amateur away": "law_a_model_with_itself",
    "changes its argument": "law_rows_stand_apart",
}


def test_the_right_one_passes():
    for law in laws_blend.LAWS:
        law(Wrong(), defined)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake):
    with pytest.raises(AssertionError):
        getattr(laws_blend, MISTAKES[mistake])(Wrong(mistake), defined)


def test_a_unit_that_rounds_is_found():
    class Rounds:
        guarantee = Guarantee.BIASED

        def mix(self, first, second):
            return first.log_softmax(-1)

    with pytest.raises(AssertionError, match="bit for bit"):
        laws_blend.law_unit(Rounds())
