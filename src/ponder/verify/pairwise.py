"""Pairwise judge: which of two answers is better, asked in both orders, read as log-probabilities.

Paper      Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv:2306.05685): pairs, and the bias to what is named first.
Equation   p(i beats j) = (p(A | i, j) + p(B | j, i)) / 2, p normalised over {A, B};  value_i = mean over rivals j of p(i beats j)
Shapes     candidates [N] -> verdicts [N], kind "score", in [0, 1]; 1/2 is a tie.
Guarantee  exact (the stated value). A bias that is the same number of nats for both orders favours nobody: p(i beats j) + p(j beats i) = 1.
Cost       two Score asks per pair of different texts: the question and both answers. rivals bounds the pairs to N rivals / 2.
Choose     to select among few finished answers where the model judges better than it grades. Partial answers: yes_no, probe_head.
Differs    log-probabilities instead of a written verdict, so that ties are rare; |p - 1/2| below `tie` counts as one. Equal texts
           share one verdict and are no rivals. detail says how far the judge leans to the first answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Score, Scores, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

OPTIONS = ("A", "B")
REQUEST = "Which answer is right, or better?\nReply with (A) or (B)."


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    rivals: int | None = None  # most others that each answer meets, an even number; None: all
    tie: float = 0.0  # a pair this close to 1/2 counts as 1/2
    max_chars: int = 2000  # of each shown answer; its end is kept
    name: str = "pairwise"

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if (self.rivals is not None and (self.rivals < 2 or self.rivals % 2)) or not 0 <= self.tie < 0.5 or self.max_chars < 1:
            raise BadField(f"{self}: rivals must be an even number, at least 2, or None; tie between 0 and 1/2; max_chars at least 1")

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        texts = _different(candidates)
        orders = [order for i, j in self._pairs(len(texts)) for order in ((i, j), (j, i))]
        return tuple(Score(prefix=Prefix(self._prompt(prompt, texts[i], texts[j])), options=OPTIONS) for i, j in orders)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        texts = _different(candidates)
        won: list[list[float]] = [[] for _ in texts]
        leans = []
        for (i, j), there, back in zip(self._pairs(len(texts)), answers[::2], answers[1::2]):
            first, second = _first_wins(there), _first_wins(back)
            if first is not None and second is not None:
                wins = (first + 1 - second) / 2
                wins = 0.5 if abs(wins - 0.5) < self.tie else wins
                won[i].append(wins)
                won[j].append(1 - wins)
                leans.append((first + second) / 2 - 0.5)
        detail = f"leans to the first answer by {sum(leans) / len(leans):+.2f}" if leans else ""
        verdicts = {text: Verdict(sum(w) / len(w), "score", detail) if w else ABSTAIN for text, w in zip(texts, won)}
        return tuple(verdicts.get(c.text, ABSTAIN) for c in candidates)

    def _pairs(self, num: int) -> list[tuple[int, int]]:
        """All pairs; with `rivals`, each meets the next rivals / 2 on a ring."""
        reach = num // 2 if self.rivals is None else min(self.rivals // 2, num // 2)
        return list(dict.fromkeys((min(i, j), max(i, j)) for i in range(num) for step in range(1, reach + 1) for j in ((i + step) % num,)))

    def _prompt(self, prompt: Prompt, first: str, second: str) -> Prompt:
        shown = [f"Answer ({name}): {text[-self.max_chars :]}" for name, text in zip(OPTIONS, (first, second))]
        return Prompt(messages=(("user", "\n\n".join([f"Question: {prompt.question}", *shown, REQUEST])),), prefill="(", max_tokens=1)


def _different(candidates: Sequence[Candidate]) -> list[str]:
    return list(dict.fromkeys(c.text for c in candidates if c.text.strip()))


def _first_wins(answer: Answer) -> float | None:
    """p(A) over both options; None when the budget was spent or neither is possible."""
    if not isinstance(answer, Scores) or len(answer.log_p) != 2 or not math.isfinite(max(answer.log_p)):
        return None
    a, b = answer.log_p
    return 1 / (1 + math.exp(min(b - a, 700.0)))
