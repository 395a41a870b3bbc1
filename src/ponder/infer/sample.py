"""Plain sampling: independent answers; the first one is the answer.

Paper      none; folklore
Equation   x^i ~ q(. | c), i = 1 .. num, independent
Shapes     prompt -> num candidates, in the order of their seeds
Guarantee  exact: every candidate has exactly the distribution of `sampling`
Cost       num answers, all at once
Choose     num=1 as the baseline; larger to measure coverage. To pick among many: best_of_n, self_consistency.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Outcome, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.infer.ops import sampled


@dataclass(frozen=True, kw_only=True)
class Sample:
    num: int = 1  # answers drawn
    sampling: Sampling = field(default_factory=Sampling)  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.EXACT
    is_direct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"sample num={self.num}: must be at least 1")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        candidates = yield from sampled(prompt, self.num, self.sampling, rng)
        return Outcome(candidates)
