"""Minimum risk over hedged samples: a greedy answer and ever hotter ones; the one that agrees best with all of them wins.

Paper      Khairi et al. 2025, "When Life Gives You Samples" (hedged sampling, multilingual selection), arXiv:2506.20544;
           minimum Bayes risk: Kumar and Byrne 2004; for neural models Eikema and Aziz 2020, arXiv:2005.10283
Equation   x* = argmax_i sum_j u(x^i, x^j) / N,  x^0 greedy,  x^k ~ q at T_k from `cold` to `hot` in equal steps
Shapes     prompt -> num candidates in falling order of mean utility
Guarantee  biased: the consensus of a mixture of temperatures; with u = same_answer exactly the vote of self_consistency
Cost       num answers, all at once; N^2 utilities, no verifier
Choose     open answers in any language, where no verifier knows the language (u = overlap), and where the best temperature is unknown:
           the greedy answer bounds the loss. Comparable answers: u = same_answer, or self_consistency.
Differs    the paper's second selector asks a model for a checklist (see plangen) and its utility is a learned metric; overlap needs
           neither and is for texts without a comparable answer only: it sees characters, not meaning
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Extend, Outcome, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import best_first, is_whole, standing

Utility = Callable[[Prompt, Candidate, Candidate], float]  # how well the second would be served by the first, in [0, 1]


def same_answer(prompt: Prompt, a: Candidate, b: Candidate) -> float:
    """1 for equal answers by the prompt's reader, else 0."""
    return float(a.answer is not None and b.answer is not None and prompt.answers.same(a.answer, b.answer))


def overlap(prompt: Prompt, a: Candidate, b: Candidate) -> float:
    """F1 of character n-grams, mean over n = 1 .. 4, case and white space aside (as chrF): any script, no tokenizer."""
    texts = ["".join(c.text.split()).casefold() for c in (a, b)]
    return sum(gram_f1(*texts, n) for n in range(1, 5)) / 4


def gram_f1(a: str, b: str, n: int) -> float:
    """2 |common| / (|a| + |b|) of the n-grams with their counts; 1 for two texts without any."""
    ours, theirs = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (a, b))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class MinimumRisk:
    num: int = 8  # answers, the greedy one included
    utility: Utility = same_answer  # or overlap, for texts that no reader can compare
    cold: float = 0.3  # temperature of the first sample
    hot: float = 1.0  # that of the last
    min_p: float = 0.05  # tokens with less than this share of the likeliest one's probability are not drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"minimum_risk num={self.num}: must be at least 1")
        self.samplings()

    def samplings(self) -> list[Sampling]:
        steps = max(1, self.num - 2)
        heats = [0.0, *(self.cold + (self.hot - self.cold) * k / steps for k in range(self.num - 1))]
        return [Sampling(temperature=t, min_p=self.min_p if t else 0.0) for t in heats]

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        asks = (Extend(prefix=Prefix(prompt), seed=rng.seed(i), sampling=s, certainty=True) for i, s in enumerate(self.samplings()))
        answers = yield Turn(tuple(asks))
        drawn = [candidate(answer.prefix) for answer in answers]
        served = by_utility(prompt, [c for c in drawn if is_whole(c)], self.utility)
        cut = best_first([c for c in drawn if not is_whole(c)])
        told = {"utilities": [c.score or 0.0 for c in served], "is_greedy": bool(served) and served[0].tokens == drawn[0].tokens}
        return Outcome((*served, *cut), served[0].score if served else None, told)


def by_utility(prompt: Prompt, candidates: Sequence[Candidate], utility: Utility) -> list[Candidate]:
    """In falling order of mean utility to all, themselves included; ties by mean log-probability."""
    served = [replace(c, score=sum(utility(prompt, c, other) for other in candidates) / len(candidates)) for c in candidates]
    return sorted(served, key=lambda c: (c.score, standing(c)), reverse=True)
