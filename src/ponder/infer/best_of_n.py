"""Best of N: draw N answers, keep the one that the verifier likes best.

Paper      Stiennon et al. 2020, arXiv:2009.01325; Cobbe et al. 2021, arXiv:2110.14168
Equation   x* = argmax_i R(x^i),  x^i ~ q(. | c)
Shapes     prompt -> num candidates, best first
Guarantee  biased: the law of the maximum of N draws, tilted towards R's mistakes as N grows
Cost       num answers, all at once, and num verdicts
Choose     with a verifier that is right more often than the vote. Weighted best-of-N is self_consistency with a verifier.
Differs    equal verdicts are broken by mean log-probability and counted; without any verdict that alone decides
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Judge, Outcome, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import best_first, standing
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    num: int  # answers drawn
    verifier: Verifier  # larger verdicts are better; an abstention ranks below every verdict
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"best_of_n num={self.num}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn = yield from sampled(prompt, self.num, self.sampling, rng)
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=drawn),), best_first(drawn))
        judged = [replace(c, score=v.value, verdicts=(v,)) for c, v in zip(drawn, told.verdicts, strict=True)]
        ranked = tuple(sorted(judged, key=rank, reverse=True))
        values = [c.score for c in ranked if c.score is not None]
        num_tied = values.count(values[0]) if values else len(ranked)
        return Outcome(ranked, diagnostics={"num_abstained": len(ranked) - len(values), "num_tied": num_tied})


def rank(candidate: Candidate) -> tuple[bool, float, tuple[bool, bool, float]]:
    return candidate.score is not None, candidate.score or 0.0, standing(candidate)
