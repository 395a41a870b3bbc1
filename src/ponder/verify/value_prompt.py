"""Value prompt: ask the model itself whether a partial solution can still succeed, and read how likely its words are.

Paper      Yao et al. 2023, Tree of Thoughts, arXiv:2305.10601, section 3, state evaluator (a).
Equation   value = sum_w worth_w p(w) / sum_w p(w),  w in sure, likely, impossible, p its probability as the reply's beginning.
Shapes     candidates [N] -> verdicts [N], kind "probability".
Guarantee  exact (the stated value); how well it is calibrated depends on the model: measure it with verify.measure.
Cost       per different text one Score ask: a prompt of the question and the text, and three options of a few tokens.
Choose     models that follow instructions and tasks where a dead end can be seen; small models answer near their prior.
Differs    the three words' exact probabilities instead of three sampled replies; their worths are the paper's 20, 1, 0.001 over 20.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Score, Scores, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

QUESTION = "Can this lead to a right answer? Reply with one word: sure, likely or impossible."
WORDS = ("sure", "likely", "impossible")


@dataclass(frozen=True, kw_only=True)
class ValuePrompt:
    worth: tuple[float, float, float] = (1.0, 0.05, 0.00005)  # of sure, likely, impossible; in [0, 1]
    max_chars: int = 2000  # of the shown text; its end is kept
    name: str = "value_prompt"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.max_chars < 1 or not all(0 <= w <= 1 for w in self.worth):
            raise BadField(f"value_prompt worth={self.worth}, max_chars={self.max_chars}: worths must be in [0, 1], characters at least 1")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return tuple(Score(prefix=Prefix(self._prompt(prompt, text)), options=WORDS) for text in _different(candidates))

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        verdicts = {text: self._verdict(answer) for text, answer in zip(_different(candidates), answers)}
        return tuple(verdicts.get(c.text, ABSTAIN) for c in candidates)

    def _prompt(self, prompt: Prompt, text: str) -> Prompt:
        parts = [f"Question: {prompt.question}", f"Solution so far: {text[-self.max_chars :]}", QUESTION]
        return Prompt(messages=(("user", "\n".join(parts)),), max_tokens=1)

    def _verdict(self, answer: Answer) -> Verdict:
        """An abstention when the budget was spent or none of the words is possible."""
        log_p = answer.log_p if isinstance(answer, Scores) else ()
        if len(log_p) != len(WORDS) or not math.isfinite(top := max(log_p)):
            return ABSTAIN
        mass = [math.exp(x - top) for x in log_p]
        return Verdict(math.fsum(w * m for w, m in zip(self.worth, mass)) / math.fsum(mass), "probability")


def _different(candidates: Sequence[Candidate]) -> list[str]:
    """Texts to ask about, each once, in order; an empty one is not asked about."""
    return list(dict.fromkeys(c.text for c in candidates if c.text.strip()))
