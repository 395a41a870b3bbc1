"""Beam search: keep the `width` most likely prefixes at every token.

Paper      Lowerre 1976; length normalisation: Wu et al. 2016, arXiv:1609.08144
Equation   B_t = top_width { (x, v) : x in B_{t-1}, v in V } by log p(x, v);  x* = argmax log p(x) / len(x)^length_power
Shapes     prompt -> up to width candidates or a few more, best first
Guarantee  biased: aims at the most likely answer and may miss it; finds it when width is as large as all prefixes
Cost       width rows per token, one turn per token, no randomness
Choose     for short, closed outputs (translation, names, code edits). Open text gets bland and repetitive: sample instead.
Differs    no early stopping heuristic: ends when no open beam can still enter the best finished ones
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.core.asks import Expand, Outcome, Prefix, Prompt, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.ops import is_settled, ranked_candidates, split_beams, unexpanded


@dataclass(frozen=True, kw_only=True)
class Beam:
    width: int = 4  # beams kept
    length_power: float = 1.0  # final score is log_p / len^power; 0 favours short answers

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.width < 1 or self.length_power < 0:
            raise BadField(f"beam width={self.width}, length_power={self.length_power}: must be at least 1 and at least 0")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        done: list[Prefix] = []
        beams = [Prefix(prompt)]
        while not is_settled(done, beams, self.width, self.length_power):
            best = ranked_candidates([p for p in (*done, *beams) if p.tokens], self.length_power)
            told = yield Turn(tuple(Expand(prefix=p, num=2 * self.width) for p in beams), best)
            children = [child for answer in told for child in answer.children]
            done += unexpanded(beams, told)
            finished, beams = split_beams(sorted(children, key=lambda p: -p.log_p), self.width)
            done += finished
        return Outcome(ranked_candidates(done, self.length_power))
