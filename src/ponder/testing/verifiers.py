"""Verifiers for tests: what they say is known, so what a strategy makes of it can be checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prefix, Prompt, Score, Scores, Verdict
from ponder.core.rng import hash_seed


@dataclass(frozen=True)
class Counting:
    """Score: how often `what` stands in the text; abstains on texts that hold `abstain_on`."""

    what: str
    abstain_on: str | None = None
    name: str = "counting"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(self.verdict(c.text) for c in candidates)

    def verdict(self, text: str) -> Verdict:
        is_silent = self.abstain_on is not None and self.abstain_on in text
        return ABSTAIN if is_silent else Verdict(float(text.count(self.what)))


@dataclass(frozen=True)
class Abstaining:
    """Never has an opinion."""

    name: str = "abstaining"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(ABSTAIN for _ in candidates)


@dataclass(frozen=True)
class Seeing:
    """Asks the model how likely `what` is as the beginning of an answer, and says that of every candidate."""

    what: str
    name: str = "seeing"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return tuple(Score(prefix=Prefix(prompt), options=(self.what,)) for _ in candidates)

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        known = [a.log_p if isinstance(a, Scores) else () for a in answers]
        return tuple(Verdict(log_p[0], "log_p") if log_p else ABSTAIN for log_p in known)


@dataclass(frozen=True)
class Lookup:
    """A probability per completion, whole or not; abstains on those that are not listed."""

    values: Mapping[tuple[int, ...], float]  # tokens -> probability
    name: str = "lookup"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(self.values[c.tokens], "probability") if c.tokens in self.values else ABSTAIN for c in candidates)


@dataclass(frozen=True)
class Reckless:
    """Says whatever comes: NaN, infinities, numbers that are no probabilities, nothing. Always the same of the same text."""

    name: str = "reckless"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        said = (math.nan, math.inf, -math.inf, 7.0, None, 0.5, -3.0)  # one nan: equal to itself in a tuple
        kinds = ("probability", "log_p", "score")
        return tuple(Verdict(said[hash_seed(c.text) % 7], kinds[hash_seed("kind", c.text) % 3]) for c in candidates)


class Observed(Protocol):
    """A model whose answers, step by step, were observed with known noise."""

    def log_likelihood(self, tokens: Sequence[int]) -> float:
        """log p(observations so far | tokens so far)."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """log p(observations so far | answer so far): with ratio factors, the weights of the bootstrap filter."""

    model: Observed
    name: str = "likelihood"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(self.model.log_likelihood(c.tokens), "log_p") if c.tokens else ABSTAIN for c in candidates)
