"""A verifier of simulated answers whose faults are settings. It costs nothing and asks nothing.

Values are binormal: a right candidate's evidence is N(mu, 1), a wrong one's N(0, 1), mu = sqrt(2) Phi^-1(auroc), so that the area under
its curve is `auroc`. The value is the posterior probability of being right, sharpened: logit = sharpness (mu s - mu^2 / 2 + logit prior).
Everything about a candidate is a function of (seed, problem, text): a verifier does not change its mind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from ponder.core.asks import ABSTAIN, Answer, Ask, Candidate, Prompt, Verdict
from ponder.core.errors import BadField
from ponder.core.rng import hash_seed
from ponder.testing.simulator import named_problem

NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class SimulatedVerifier:
    auroc: float = 0.8  # chance that a right candidate's value beats a wrong one's; 1 says 1 or 0, 0.5 is noise
    sharpness: float = 1.0  # 1: calibrated where `prior` is the share of right candidates; above: too sure; below: too shy
    prior: float = 0.5  # share of right candidates that it expects
    false_positives: float = 0.0  # share of wrong candidates that look right to it, as programs do that pass a few tests
    abstains: float = 0.0  # share of candidates about which it says nothing
    popular: float = 0.0  # correlation of a wrong answer's evidence with its popularity: it errs as the model errs
    judges_steps: bool = True  # False: says nothing about unfinished answers
    seed: int = 0
    name: str = "simulated"

    def __post_init__(self) -> None:
        rules = (
            ("auroc", 0.5 <= self.auroc <= 1, "between 0.5 and 1"),
            ("sharpness", self.sharpness > 0, "positive"),
            ("prior", 0 < self.prior < 1, "strictly between 0 and 1"),
            ("false_positives", 0 <= self.false_positives <= 1, "a share"),
            ("abstains", 0 <= self.abstains <= 1, "a share"),
            ("popular", 0 <= self.popular <= 1, "between 0 and 1"),
        )
        for name, ok, rule in rules:
            if not ok:
                raise BadField(f"simulated verifier {name}={getattr(self, name)}: must be {rule}")

    @property
    def shift(self) -> float:
        """mu: how far right evidence lies above wrong evidence, in standard deviations."""
        return math.inf if self.auroc == 1 else math.sqrt(2) * NORMAL.inv_cdf(self.auroc)

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        problem = named_problem(prompt.messages)
        return tuple(self.verdict(problem, c.text) for c in candidates)

    def verdict(self, problem: int, text: str) -> Verdict:
        """About a whole answer: whether it is right. About a part of one: whether no step of it is a slip."""
        is_whole = "#" in text
        if not text or (not is_whole and not self.judges_steps) or self._draw(problem, text, "abstain") < self.abstains:
            return ABSTAIN
        looks_right = is_sound(text) or self._draw(problem, text, "false") < self.false_positives
        if self.auroc == 1:
            return Verdict(float(looks_right), "probability")
        evidence = self._noise(problem, text) + (self.shift if looks_right else 0.0)
        logit = self.shift * evidence - self.shift**2 / 2 + math.log(self.prior / (1 - self.prior))
        return Verdict(1 / (1 + math.exp(-max(-500.0, min(500.0, self.sharpness * logit)))), "probability")

    def _noise(self, problem: int, text: str) -> float:
        """Standard normal; a wrong whole answer's leans with its popularity."""
        noise = NORMAL.inv_cdf(min(max(self._draw(problem, text, "noise"), 1e-12), 1 - 1e-12))
        if self.popular == 0 or "#" not in text or is_sound(text):
            return noise
        return math.sqrt(1 - self.popular**2) * noise + self.popular * leaning(int(text.rpartition("#")[2]))

    def _draw(self, problem: int, text: str, what: str) -> float:
        return hash_seed("verdict", what, self.seed, problem, text) / 2**63


def is_sound(text: str) -> bool:
    """Whether the text of an answer, or of a part of one, holds no slip."""
    return "x" not in text


@lru_cache(maxsize=1000)
def leaning(answer: int) -> float:
    """+1 for the most popular wrong answer, falling to -1: 1 at answer 1, 0 at answer 3, -1 far out."""
    return 4 / (answer + 1) - 1
