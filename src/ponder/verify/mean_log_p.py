"""Mean log-probability: how likely the model found its own answer, per token.

Paper      length-normalised likelihood as a confidence, e.g. Fomicheva et al. 2020 (arXiv:2005.10608).
Equation   value = log_p / num_tokens.
Shapes     candidates [N] -> verdicts [N], kind "log_p", in nats, at most 0.
Guarantee  exact (the stated value); as a sign of rightness it is a heuristic: measure it with verify.measure.
Cost       none, the engine has computed log_p already.
Choose     as the free baseline of every other verifier. Prefers bland and repetitive text.
Differs    a candidate without tokens gets an abstention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class MeanLogP:
    name: str = "mean_log_p"

    guarantee = Guarantee.EXACT
    needs = ("log_p",)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(c.mean_log_p, "log_p") if c.tokens else ABSTAIN for c in candidates)
