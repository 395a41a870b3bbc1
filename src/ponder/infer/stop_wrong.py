"""Stop wrong: greedy decoding step by step, which says no more once a verifier thinks that what comes next will be wrong.

Paper      Sun et al. 2024, "When Neural Code Completion Models Size up the Situation: Attaining Cheaper and Faster Completion through
           Dynamic Model Inference", arXiv:2401.09964
Equation   x = s_1 .. s_k, s_i the i-th step of greedy decoding, k the largest number such that R(s_1 .. s_i) >= stop_below for all i <= k
Shapes     prompt -> 1 candidate, perhaps empty
Guarantee  biased: a beginning of greedy decoding's answer, token by token, cut by R
Cost       greedy decoding's tokens up to and with the first step that is judged wrong; verdicts of a trained head on the model's own states
           cost nothing (verifier=FILE from `ponder train-verifier`)
Choose     completions that a person reads while typing: a wrong line costs more than none. Not for answers that must be whole.
Differs    the paper's classifier reads one early layer's state before each token, here the last layer's at each step's end, and a step that is
           judged wrong is not shown, though it was computed; leaving early while going on is a drafter (accelerate/draft/early_exit): lossless
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from ponder.core.asks import GREEDY, Extend, Judge, Outcome, Prefix, Prompt, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier


@dataclass(frozen=True, kw_only=True)
class StopWrong:
    verifier: Verifier  # judges beginnings of answers
    stop_below: float = 0.5  # verdict that ends the answer
    until: tuple[str, ...] = ("\n",)  # ends of steps
    max_step: int = 32  # most tokens of a step
    num_steps: int | None = None  # most steps; None: until the answer ends

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.max_step < 1 or (self.num_steps is not None and self.num_steps < 1):
            raise BadField(f"stop_wrong max_step={self.max_step}, num_steps={self.num_steps}: must be at least 1, num_steps may be None")

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        kept, num_steps, is_stopped = Prefix(prompt), 0, False
        value: float | None = None
        while not kept.is_final and not is_stopped and num_steps != self.num_steps:
            ask = Extend(prefix=kept, seed=rng.seed(0), until=self.until, max_tokens=self.max_step, sampling=GREEDY)
            (answer,) = yield Turn((ask,), (candidate(kept, score=value),))
            grown = answer.prefix
            if grown.finish != "budget":
                (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=(candidate(grown),)),), (candidate(kept, score=value),))
                found = told.verdicts[0].value
                is_stopped = found is not None and found < self.stop_below
                value = value if is_stopped else found
            num_steps += not is_stopped
            kept = kept if is_stopped else grown
        ended = replace(candidate(kept, score=value), finish=kept.finish or "stop")  # what is not shown is no cut of the budget's
        return Outcome((ended,), diagnostics={"num_steps": num_steps, "is_stopped": is_stopped})
