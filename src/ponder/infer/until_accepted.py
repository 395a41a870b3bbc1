"""Until accepted: draw answers until the verifier lets one pass, at most as many as its mistakes leave worth drawing.

Paper      Stroebl, Kapoor and Narayanan 2024, "Inference Scaling fLaws: The Limits of LLM Resampling with Imperfect Verifiers", arXiv:2411.17501
Equation   x* = the first x^k with R(x^k) >= accept_from, k <= K;  a question of type i (share p_i, right with rate r_i) rejects a draw with
           beta_i = (1 - c) r_i + s (1 - r_i);  K = argmax_k EV_1 + .. + EV_k,
           EV_k = sum_i p_i beta_i^{k-1} (gain c r_i - harm (1 - s) (1 - r_i) - cost)
Shapes     prompt -> at most num candidates, the accepted one first
Guarantee  biased: an accepted answer is right with a chance that more draws do not raise; `ceiling` says how far it goes
Cost       1 / (1 - beta) answers and verdicts on average where nothing limits them
Choose     with a verifier that says yes or no (tests, a checker) and knows its own error rates: then K is the most that pays. Without such
           rates: best_of_n, which also ranks what was rejected.
Differs    a batch is drawn at once and its first accepted answer counts; without any, the best rejected one stands first, marked as such
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Judge, Outcome, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import best_first, is_whole, standing
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class Odds:
    """What is known of questions and verifier. Draws of one question are independent."""

    shares: tuple[float, ...]  # of the types of question
    rates: tuple[float, ...]  # chance that a draw is right, per type
    completeness: float  # P(accepted | right)
    soundness: float  # P(rejected | wrong)

    def __post_init__(self) -> None:
        chances = (*self.shares, *self.rates, self.completeness, self.soundness)
        if len(self.shares) != len(self.rates) or not self.shares or abs(sum(self.shares) - 1) > 1e-9 or not all(0 <= x <= 1 for x in chances):
            raise BadField(f"odds {self}: must have as many rates as shares, all in [0, 1], shares that sum to 1")

    def right(self, k: int) -> float:
        """Chance that draw k is the first accepted one, and right."""
        return math.fsum(p * self.rejected(r) ** (k - 1) * self.completeness * r for p, r in zip(self.shares, self.rates))

    def wrong(self, k: int) -> float:
        """Chance that draw k is the first accepted one, and wrong."""
        return math.fsum(p * self.rejected(r) ** (k - 1) * (1 - self.soundness) * (1 - r) for p, r in zip(self.shares, self.rates))

    def reached(self, k: int) -> float:
        """Chance that draw k is made."""
        return math.fsum(p * self.rejected(r) ** (k - 1) for p, r in zip(self.shares, self.rates))

    def trust(self, k: int) -> float:
        """Chance that draw k is right when it is the first accepted one."""
        total = self.right(k) + self.wrong(k)
        return self.right(k) / total if total > 0 else 0.0

    def rejected(self, rate: float) -> float:
        return (1 - self.completeness) * rate + self.soundness * (1 - rate)

    def ceiling(self, num: int = 10_000) -> float:
        """Chance of a right answer given that one of `num` draws is accepted: what no number of draws can pass."""
        right, wrong = (math.fsum(f(k) for k in range(1, num + 1)) for f in (self.right, self.wrong))
        return right / (right + wrong) if right + wrong > 0 else 0.0

    def most_worth(self, gain: float, harm: float, cost: float, limit: int) -> int:
        """The number of draws, 0 to `limit`, with the largest expected value; the smallest among equals."""
        values = [gain * self.right(k) - harm * self.wrong(k) - cost * self.reached(k) for k in range(1, limit + 1)]
        totals = [0.0, *(math.fsum(values[:k]) for k in range(1, limit + 1))]
        return max(range(limit + 1), key=lambda k: (totals[k], -k))


@dataclass(frozen=True, kw_only=True)
class UntilAccepted:
    verifier: Verifier
    num: int = 16  # most answers drawn
    batch: int = 1  # drawn beside each other
    accept_from: float = 0.5  # verdict that accepts
    odds: Odds | None = None  # known rates: no draw is made that is not worth its cost
    gain: float = 1.0  # value of a right answer
    harm: float = 1.0  # cost of a wrong one that was accepted
    cost: float = 0.0  # of one draw
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.num or min(self.gain, self.harm, self.cost) < 0:
            raise BadField(f"until_accepted num={self.num}, batch={self.batch}: must be 1 <= batch <= num; gain, harm and cost at least 0")

    @property
    def most(self) -> int:
        """Draws that are worth making; 1 at least, because an answer is owed."""
        return self.num if self.odds is None else max(1, self.odds.most_worth(self.gain, self.harm, self.cost, self.num))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        judged: list[Candidate] = []
        accepted: Candidate | None = None
        while accepted is None and len(judged) < self.most:
            shown = tuple(sorted(judged, key=rank, reverse=True))
            new = yield from sampled(prompt, min(self.batch, self.most - len(judged)), self.sampling, rng, since=len(judged), best=shown)
            (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=new),), shown or best_first(new))
            scored = [replace(c, score=v.value, verdicts=(v,)) for c, v in zip(new, told.verdicts, strict=True)]
            judged += scored
            accepted = next((c for c in scored if is_whole(c) and c.score is not None and c.score >= self.accept_from), None)
            if not any(map(is_whole, new)):  # the budget is spent
                break
        ranked = sorted(judged, key=rank, reverse=True)
        confidence = None
        if accepted is not None:
            ranked.remove(accepted)
            ranked.insert(0, accepted)
            confidence = self.odds.trust(judged.index(accepted) + 1) if self.odds is not None else None
        told_of = {"num_drawn": len(judged), "is_accepted": accepted is not None, "most": self.most}
        return Outcome(tuple(ranked), confidence, told_of)


def rank(c: Candidate) -> tuple[bool, bool, float, tuple[bool, bool, float]]:
    return is_whole(c), c.score is not None, c.score or 0.0, standing(c)
