"""Self-consistency: draw N answers and let them vote.

Paper      Wang et al. 2022, arXiv:2203.11171; weighted: Li et al. 2022, arXiv:2206.02336; by path probability
           (perplexity consistency): Zhou et al. 2025, arXiv:2502.00511
Equation   y* = argmax_y sum_i weigh_i 1[y_i = y],  confidence = share of y*
Shapes     prompt -> num candidates, the winner's best one first
Guarantee  biased: tends to the most frequent answer, right or wrong
Cost       num answers, all at once, and num verdicts with a verifier
Choose     whenever answers can be compared. With a verifier it is weighted best-of-N. Free text: best_of_n instead.
Differs    answers are grouped by the prompt's reader, never by spelling; texts without an answer and texts that the budget
           cut off do not vote and are counted; ties go to the group whose best member has the higher mean log-probability
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Judge, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import Weigh, by_verdict, one_each, voted
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    num: int  # answers drawn
    verifier: Verifier | None = None  # weighs the votes by its verdicts
    weigh: Weigh | None = None  # None: one vote each, or by_verdict where there is a verifier; also by_path_probability
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"self_consistency num={self.num}: must be at least 1")
        if self.weigh is not None and (self.weigh is by_verdict) != (self.verifier is not None):
            raise BadField("self_consistency: a verifier is used by weigh=by_verdict and by nothing else; give both or neither")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn = yield from sampled(prompt, self.num, self.sampling, rng)
        if self.verifier is not None:
            ask = Judge(verifier=self.verifier, prompt=prompt, candidates=drawn)
            (told,) = yield Turn((ask,), voted(drawn, one_each(drawn), prompt).candidates)
            drawn = tuple(replace(c, verdicts=(v,)) for c, v in zip(drawn, told.verdicts, strict=True))
        return voted(drawn, (self.weigh or (one_each if self.verifier is None else by_verdict))(drawn), prompt)
