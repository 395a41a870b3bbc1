"""Zero-order search: move the noise of the best answer a little, again and again, and keep what the verifier likes better.

Paper      Ma et al. 2025, arXiv:2501.09732, zero-order search; Neal 1999 (the move of the noise)
Equation   z_k = sqrt(1 - share^2) z* + share z',  z' ~ N(0, 1) at every position;  z* <- argmax of R over z* and its neighbours
Shapes     prompt -> num_starts + num_rounds x num_neighbours candidates, best first
Guarantee  biased: an uphill search of R, tilted towards R's mistakes the longer it runs; R of the best never falls
Cost       as many whole answers as candidates, one verdict each; num_rounds + 1 turns of asks
Choose     where near noise makes near answers: deterministic denoisers, forecasts. With a language model one early token that
           changes makes another answer, so the neighbourhood is smaller than it looks; best_of_n is this search without rounds
Differs    noise is mixed in Gaussian coordinates, which keeps its distribution, instead of on a sphere; the noise of every step
           moves, not the first state's alone (for a deterministic denoiser that is the same)
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Extend, Judge, Outcome, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import standing

Noise = tuple[int, tuple[tuple[int, float], ...]]  # seed and drift: with the process they decide an answer entirely


@dataclass(frozen=True, kw_only=True)
class ZeroOrder:
    verifier: Verifier  # larger verdicts are better; an abstention ranks below every verdict
    num_starts: int = 1  # independent answers to begin with, of which the best is moved
    num_rounds: int = 4
    num_neighbours: int = 4  # tried in each round
    share: float = 0.4  # of new noise in a neighbour's, in (0, 1]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        rules = (
            ("num_starts", self.num_starts, self.num_starts >= 1, "at least 1"),
            ("num_rounds", self.num_rounds, self.num_rounds >= 0, "at least 0"),
            ("num_neighbours", self.num_neighbours, self.num_neighbours >= 1, "at least 1"),
            ("share", self.share, 0 < self.share <= 1, "in (0, 1]"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"zero_order {name}={value}: must be {rule}")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        starts: list[Noise] = [(rng.seed(i), ()) for i in range(self.num_starts)]
        ranked = yield from self.tried(prompt, starts, [])
        num_moves = 0
        for i in range(self.num_rounds):
            if ranked[0][0].finish == "budget":
                break
            best, (seed, drift) = ranked[0]
            near: list[Noise] = [(seed, (*drift, (rng.seed(i, k), self.share))) for k in range(self.num_neighbours)]
            ranked = yield from self.tried(prompt, near, ranked)
            num_moves += ranked[0][0] is not best
            if all(c.finish == "budget" for c, noise in ranked if noise in near):
                break
        return Outcome(tuple(c for c, _ in ranked), diagnostics={"num_moves": num_moves, "num_tried": len(ranked)})

    def tried(
        self, prompt: Prompt, noises: Sequence[Noise], before: list[tuple[Candidate, Noise]]
    ) -> Generator[Turn, Sequence[Answer], list[tuple[Candidate, Noise]]]:
        """All answers so far, best first; among equals the earlier."""
        shown = tuple(c for c, _ in before)
        asks = tuple(Extend(prefix=Prefix(prompt), seed=s, drift=d, sampling=self.sampling, certainty=True) for s, d in noises)
        answers = yield Turn(asks, shown)
        new = tuple(candidate(answer.prefix) for answer in answers)
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=new),), shown or tuple(sorted(new, key=standing, reverse=True)))
        judged = [replace(c, score=v.value, verdicts=(v,)) for c, v in zip(new, told.verdicts, strict=True)]
        return sorted([*before, *zip(judged, noises)], key=lambda pair: rank(pair[0]), reverse=True)


def rank(candidate: Candidate) -> tuple[bool, bool, float, tuple[bool, bool, float]]:
    return candidate.finish != "budget", candidate.score is not None, candidate.score or 0.0, standing(candidate)
