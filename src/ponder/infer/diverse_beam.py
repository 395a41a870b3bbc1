"""Diverse beam search: groups of beams that avoid each other's tokens.

Paper      Vijayakumar et al. 2016, arXiv:1610.02424
Equation   group g at step t keeps the top of log p(x, v) - diversity * #{beams of groups < g that chose v at step t}
Shapes     prompt -> about width candidates, best first
Guarantee  biased: like beam, and the penalty moves it further from the most likely answer
Cost       width rows per token, one turn per token, no randomness
Choose     to offer several different answers. One group, or diversity 0, gives nothing that beam does not.
Differs    the penalty decides who is kept but is not carried in log_p, so final scores are the model's own
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ponder.core.asks import Expand, Expansion, Outcome, Prefix, Prompt, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.ops import is_settled, ranked_candidates, split_beams, unexpanded


@dataclass(frozen=True, kw_only=True)
class DiverseBeam:
    width: int = 4  # beams kept, all groups together
    num_groups: int = 4  # must divide width; width groups of one beam each are the most diverse
    diversity: float = 0.5  # penalty in nats for each earlier beam with the same token at the same step
    length_power: float = 1.0  # final score is log_p / len^power

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.width < 1 or self.width % self.num_groups:
            raise BadField(f"diverse_beam width={self.width}, num_groups={self.num_groups}: the number of groups must divide the width")
        if self.diversity < 0 or self.length_power < 0:
            raise BadField(f"diverse_beam diversity={self.diversity}, length_power={self.length_power}: must be at least 0")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        size = self.width // self.num_groups
        groups = [[Prefix(prompt)] for _ in range(self.num_groups)]
        done: list[list[Prefix]] = [[] for _ in groups]
        everything = lambda: list(dict.fromkeys(itertools.chain(*done, *groups)))  # each once: groups may meet again
        while open_beams := [p for beams in groups for p in beams]:
            best = ranked_candidates([p for p in everything() if p.tokens], self.length_power)
            told = iter((yield Turn(tuple(Expand(prefix=p, num=2 * self.width) for p in open_beams), best)))
            chosen: Counter[int] = Counter()
            for g, beams in enumerate(groups):
                mine = [next(told) for _ in beams]
                finished, groups[g] = self.select(mine, chosen, size)
                done[g] += [*unexpanded(beams, mine), *finished]
                chosen.update(p.tokens[-1] for p in (*finished, *groups[g]))
                if is_settled(done[g], groups[g], size, self.length_power):
                    groups[g] = []
        return Outcome(ranked_candidates(everything(), self.length_power))

    def select(self, told: list[Expansion], chosen: Counter[int], size: int) -> tuple[list[Prefix], list[Prefix]]:
        children = [child for answer in told for child in answer.children]
        return split_beams(sorted(children, key=lambda p: self.diversity * chosen[p.tokens[-1]] - p.log_p), size)
