"""Compute-optimal: estimate from a few answers how hard a question is, and spend the rest of the budget as a table says.

Paper      Snell et al. 2024, "Scaling LLM Test-Time Compute Optimally", arXiv:2408.03314, section 3
Equation   ease = share of the leading answer among `first` answers, or their mean verdict;  arm = arms[#{edges <= ease}]
Shapes     prompt -> the first answers and the arm's, the winner's best one first
Guarantee  biased: a vote over all answers, or the arm's own choice (is_pooled=False)
Cost       `first` answers, and what the question's arm costs
Choose     where questions differ in difficulty and a table was fitted for the task and the model (plan/allocate.py). Questions that
           are all alike, or no table: adaptive, which needs none.
Differs    difficulty is predicted from `first` answers of the question itself, which then vote too, not from 2,048; bins have given edges
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Judge, Outcome, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Strategy, Verifier
from ponder.core.votes import is_whole, one_each, tally, voted
from ponder.infer.compose import showing
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class ComputeOptimal:
    arms: tuple[Strategy | None, ...]  # the hardest questions' first; None: the first answers are enough
    edges: tuple[float, ...] = (0.5, 0.9)  # ease from which on the next arm is taken; one less than arms, rising
    first: int = 4  # answers that difficulty is estimated from
    verifier: Verifier | None = None  # estimates ease by its verdicts on them; None: by their agreement
    is_pooled: bool = True  # all answers vote; False: where there is an arm, its answer stands
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token of the first answers is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.first < 1 or len(self.arms) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise BadField(f"compute_optimal first={self.first}, edges={self.edges}: at least 1; rising, and one less than {len(self.arms)} arms")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn = yield from sampled(prompt, self.first, self.sampling, rng)
        so_far = voted(drawn, one_each(drawn), prompt)
        if self.verifier is not None:
            (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=drawn),), so_far.candidates)
            drawn = tuple(replace(c, verdicts=(v,)) for c, v in zip(drawn, told.verdicts, strict=True))
            so_far = voted(drawn, one_each(drawn), prompt)
        ease = agreement(drawn, prompt) if self.verifier is None else mean_verdict(drawn)
        number = bisect_right(self.edges, ease)
        arm = self.arms[number]
        about = {"ease": ease, "arm": number}
        if arm is None or not any(map(is_whole, drawn)):
            return replace(so_far, diagnostics=so_far.diagnostics | about)
        found = yield from showing(so_far.candidates, arm.run(prompt, rng.fork(1)))
        return self.concluded(drawn, found, prompt, about)

    def concluded(self, drawn: tuple[Candidate, ...], found: Outcome, prompt: Prompt, about: dict[str, object]) -> Outcome:
        if not self.is_pooled and is_whole(found.candidates[0]):
            return replace(found, diagnostics=found.diagnostics | about)
        everything = (*drawn, *found.candidates)
        pooled = voted(everything, one_each(everything), prompt)
        return replace(pooled, diagnostics=pooled.diagnostics | about)


def agreement(drawn: tuple[Candidate, ...], prompt: Prompt) -> float:
    """Share of the leading answer; texts without an answer count as disagreeing."""
    tallies = tally(drawn, one_each(drawn), prompt.answers)
    return tallies[0].weight / len(drawn) if tallies else 0.0


def mean_verdict(drawn: tuple[Candidate, ...]) -> float:
    """Over those that have one; 0 where none has."""
    values = [v.value for c in drawn for v in c.verdicts if v.value is not None]
    return sum(values) / len(values) if values else 0.0
