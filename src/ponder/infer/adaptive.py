"""Adaptive voting: draw answers until a stop rule says that the vote is decided.

Paper      Aggarwal et al. 2023, arXiv:2305.11860 (rule beta_test); Li et al. 2024, arXiv:2401.10480 (rule unanimous_window)
Equation   n_{t+1} = n_t + rule(y_1 .. y_{n_t}; num - n_t) until the rule says 0;  y* = argmax_y #{i <= n : y_i = y}
Shapes     prompt -> at most num candidates, the winner's best one first
Guarantee  biased: a vote; it is another vote than that over all num answers with a chance of at most rule.error
Cost       at most num answers; fewer the surer the model, in as many rounds as the rule needs
Choose     instead of self_consistency wherever answers can be compared: equal answers for fewer tokens. Alone, short questions
           with cheap tokens: rounds cost latency, so take a rule with large batches. Rule settled never changes the vote.
Differs    answers are the first ones of self_consistency with the same seed, so a sample store serves both
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, StopRule
from ponder.core.votes import is_whole, labels, one_each, voted
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    num: int  # most answers drawn
    rule: StopRule  # when to stop
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"adaptive num={self.num}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn: tuple[Candidate, ...] = ()
        num_rounds = 0
        while left := self.num - len(drawn):
            more = self.rule.more(labels(drawn, prompt.answers), left)
            if more == 0 and drawn:
                break
            best = voted(drawn, one_each(drawn), prompt).candidates
            new = yield from sampled(prompt, min(max(more, 1), left), self.sampling, rng, since=len(drawn), best=best)
            drawn, num_rounds = (*drawn, *new), num_rounds + 1
            if not any(is_whole(c) for c in new):  # the budget is spent
                break
        outcome = voted(drawn, one_each(drawn), prompt)
        return replace(outcome, diagnostics=outcome.diagnostics | {"num_drawn": len(drawn), "num_rounds": num_rounds})
