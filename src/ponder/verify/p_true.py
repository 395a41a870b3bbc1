"""P(True): ask the model itself whether a proposed answer is true, and read the probability of its reply.

Paper      Kadavath et al. 2022, "Language Models (Mostly) Know What They Know" (arXiv:2207.05221).
Equation   value = p(A) / (p(A) + p(B)), p the model's probability of each option as its whole reply's beginning.
Shapes     candidates [N] -> verdicts [N], kind "probability".
Guarantee  exact (the stated value); how well it is calibrated depends on the model: measure it with verify.measure.
Cost       per different answer one Score ask: a prompt of the question, the answer and the samples, and two options of one token or two.
Choose     models that follow instructions well (the paper: 12B up). Small models answer near their prior for "(A)".
Differs    chat prompt instead of raw text; equal answers are asked once; samples are the other candidates, most frequent first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Score, Scores, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

QUESTION = "Is the proposed answer:\n(A) True\n(B) False\nReply with (A) or (B)."
OPTIONS = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class PTrue:
    num_samples: int = 0  # most brainstormed answers shown beside the proposed one; 0: none
    max_chars: int = 2000  # of each shown answer; its end is kept
    name: str = "p_true"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.max_chars < 1:
            raise BadField(f"p_true num_samples={self.num_samples}, max_chars={self.max_chars}: samples must be at least 0, characters at least 1")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        samples = _brainstormed(candidates)[: self.num_samples]
        return tuple(Score(prefix=Prefix(self._prompt(prompt, text, samples)), options=OPTIONS) for text in _different(candidates))

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        verdicts = {text: _verdict(answer) for text, answer in zip(_different(candidates), answers)}
        return tuple(verdicts.get(c.text, ABSTAIN) for c in candidates)

    def _prompt(self, prompt: Prompt, text: str, samples: Sequence[str]) -> Prompt:
        shown = [f"Here are some brainstormed ideas: {'; '.join(s[-self.max_chars :] for s in samples)}"] if samples else []
        parts = [f"Question: {prompt.question}", *shown, f"Proposed answer: {text[-self.max_chars :]}", QUESTION]
        return Prompt(messages=(("user", "\n".join(parts)),), prefill="(", max_tokens=1)


def _different(candidates: Sequence[Candidate]) -> list[str]:
    """Texts to ask about, each once, in order; an empty answer is not asked about."""
    return list(dict.fromkeys(c.text for c in candidates if c.text.strip()))


def _brainstormed(candidates: Sequence[Candidate]) -> list[str]:
    answers = [c.answer for c in candidates if c.answer is not None]
    return sorted(dict.fromkeys(answers), key=answers.count, reverse=True)


def _verdict(answer: Answer) -> Verdict:
    """p(A) over both options; an abstention when the budget was spent or neither option is possible."""
    if not isinstance(answer, Scores) or len(answer.log_p) != len(OPTIONS):
        return ABSTAIN
    yes, no = answer.log_p
    top = max(yes, no)
    if not math.isfinite(top):
        return ABSTAIN
    return Verdict(math.exp(yes - top) / (math.exp(yes - top) + math.exp(no - top)), "probability")
