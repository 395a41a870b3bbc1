"""Self-certainty: how far the model's next-token distributions were from uniform, per token.

Paper      Kang et al. 2025, "Scalable Best-of-N Selection for Large Language Models via Self-Certainty" (arXiv:2502.18581).
Equation   value = (1/n) * sum_i KL(U || p_i) = certainty / num_tokens, with KL(U || p) = -(1/V) * sum_j log(V p_j).
Shapes     candidates [N] -> verdicts [N], kind "score", in nats, at least 0.
Guarantee  exact (the stated value); as a sign of rightness it is a heuristic: measure it with verify.measure.
Cost       none beyond asking the engine for it (Extend(certainty=True)).
Choose     best-of-N without a reward model; less biased to short and bland answers than mean_log_p.
Differs    a candidate whose certainty was not asked for (it is exactly 0) gets an abstention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class SelfCertainty:
    name: str = "self_certainty"

    guarantee = Guarantee.EXACT
    needs = ("certainty",)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(c.certainty / len(c.tokens)) if c.tokens and c.certainty else ABSTAIN for c in candidates)
