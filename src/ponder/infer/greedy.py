"""Greedy decoding: the most likely next token, until the end.

Paper      none; folklore
Equation   x_t = argmax_v p(v | c, x_<t)
Shapes     prompt -> 1 candidate
Guarantee  exact: the stated value, token by token; not the most likely whole answer (that is what beam looks for)
Cost       one answer; no randomness
Choose     for short factual answers and as the baseline. Not to vote with: every run is the same.
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.core.asks import GREEDY, Extend, Outcome, Prefix, Prompt, Turn, candidate
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking


@dataclass(frozen=True, kw_only=True)
class Greedy:
    guarantee: ClassVar[Guarantee] = Guarantee.EXACT
    is_direct: ClassVar[bool] = True

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        (answer,) = yield Turn((Extend(prefix=Prefix(prompt), seed=rng.seed(0), sampling=GREEDY),))
        return Outcome((candidate(answer.prefix),))
