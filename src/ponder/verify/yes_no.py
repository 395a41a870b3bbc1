"""Yes or no, in place: the model goes on from the answer itself, and the odds of "yes" against "no" judge it, step by step.

Paper      Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv:2306.05685), single-answer grading; read as log-probabilities as
           in Zhang et al. 2024, "Generative Verifiers" (arXiv:2408.15240), without training.
Equation   value = p(yes) / (p(yes) + p(no)), each the probability of question + word after prompt and answer.
Shapes     candidates [N], finished or not -> verdicts [N], kind "probability".
Guarantee  exact (the stated value); as a sign of rightness it depends on the model: measure it with verify.quality.
Cost       incremental: prompt and answer are in the cache already, so a verdict costs the two replies, about ten tokens, whatever
           the answer's length. Judged from a cold cache, prompt and answer once.
Choose     to judge every step where no head is trained, with models that follow instructions. Prefers what it wrote itself.
Differs    no judge's prompt of its own: that is what makes it incremental. The token that ended the answer is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Score, Scores, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class YesNo:
    question: str = "\nIs this right?"  # asked after the answer
    words: tuple[str, str] = (" Yes", " No")  # the good one first
    name: str = "yes_no"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if not all(self.words) or self.words[0] == self.words[1]:
            raise BadField(f"yes_no words={self.words}: must be two different words, the good one first")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        options = (self.question + self.words[0], self.question + self.words[1])
        return tuple(Score(prefix=Prefix(prompt, tokens, text), options=options) for tokens, text in _different(candidates).items())

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        verdicts = {tokens: _verdict(answer) for tokens, answer in zip(_different(candidates), answers)}
        return tuple(verdicts.get(_said(c), ABSTAIN) if c.text.strip() else ABSTAIN for c in candidates)


def _said(candidate: Candidate) -> tuple[int, ...]:
    """Its tokens without the one that ended it."""
    return candidate.tokens[:-1] if candidate.finish == "stop" else candidate.tokens


def _different(candidates: Sequence[Candidate]) -> dict[tuple[int, ...], str]:
    """Tokens -> text of what is asked about, each once, in order; an empty answer is not."""
    return {_said(c): c.text for c in candidates if c.text.strip()}


def _verdict(answer: Answer) -> Verdict:
    if not isinstance(answer, Scores) or len(answer.log_p) != 2 or not math.isfinite(max(answer.log_p)):
        return ABSTAIN
    yes, no = answer.log_p
    return Verdict(1 / (1 + math.exp(min(no - yes, 700.0))), "probability")
