"""PlanGEN: write down the constraints, choose a strategy by what it earned so far, and judge its answer against the constraints.

Paper      Parmar et al. 2025, "PlanGEN: A Multi-Agent Framework for Generating Planning and Reasoning Trajectories", arXiv:2502.16111
Equation   arm = argmax_a R(a) / N(a) + sqrt(2 ln(T + 1) / N(a)) + diversity / (N(a) + 1), arms never tried first;  x ~ arm(c + what was
           found wrong with the best so far);  score(x) in -100 .. 100 against the constraints;  end at score >= accept_from
Shapes     prompt -> one candidate per round, best score first
Guarantee  biased: the answer that the model itself scores best
Cost       one answer for the constraints; per round what the chosen arm costs and one for the score
Choose     planning with many constraints and a strong model; the arms are strategies of this room. Small models give nearly every
           answer the same score: then best_of_n with any verifier.
Differs    rewards are score mapped to [0, 1]; the paper's terms for a model's prior over arms and for recovery are left out (their
           weights are not stated); an answer without a readable score counts as the worst
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Outcome, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Strategy
from ponder.core.votes import is_whole, standing
from ponder.infer.compose import showing
from ponder.infer.prompting import again, aside, check_template, filled, quoted, replies

CONSTRAINTS = "{question}\n\nList every constraint that an answer to this must fulfil, one per line. Do not solve it."
SCORE = """{question}

Constraints:
{constraints}

Proposed answer:
{answer}

Check the proposed answer against every constraint and say what is wrong. End with a line "Score: N", N from -100 (all wrong) to 100 (perfect)."""
IMPROVE = """{question}

Constraints:
{constraints}

An earlier answer:
{answer}

What is wrong with it:
{feedback}

Write a better answer that fulfils every constraint."""
NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, kw_only=True)
class PlanGen:
    arms: tuple[Strategy, ...]  # strategies to choose among
    rounds: int = 4  # most answers
    accept_from: float = 95.0  # score that ends the rounds
    diversity: float = 0.5  # bonus of arms that were seldom chosen
    constraints: str = CONSTRAINTS  # template of {question}
    score: str = SCORE  # template of {question}, {constraints} and {answer}
    improve: str = IMPROVE  # template of {question}, {constraints}, {answer} and {feedback}
    check_tokens: int = 384  # most tokens of the constraints, and of a check
    max_chars: int = 4000  # shown of each quoted text
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how constraints and checks are drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if not self.arms or min(self.rounds, self.check_tokens, self.max_chars) < 1:
            raise BadField(f"plangen arms={self.arms}, rounds={self.rounds}: must be at least one strategy and one round, limits at least 1")
        check_template("plangen constraints", self.constraints, ("question",))
        check_template("plangen score", self.score, ("question", "constraints", "answer"))
        check_template("plangen improve", self.improve, ("question", "constraints", "answer", "feedback"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        ranked: tuple[Candidate, ...] = ()
        feedback: dict[Candidate, str] = {}
        rewards: list[list[float]] = [[] for _ in self.arms]
        parts = {"question": prompt.question}
        for number in range(self.rounds):
            arm = chosen(rewards, self.diversity)
            shown = {} if not ranked else parts | {"answer": self.quote(ranked[0].text), "feedback": self.quote(feedback[ranked[0]])}
            asked = again(prompt, filled(self.improve, shown)) if shown else prompt
            outcome = yield from showing(ranked, self.arms[arm].run(asked, rng.fork(0, number)))
            answer = outcome.candidates[0]
            if not is_whole(answer):
                ranked = (*ranked, answer)
                break
            if "constraints" not in parts:
                side = aside(prompt, filled(self.constraints, parts), self.check_tokens)
                (listed,) = yield from replies([side], self.sampling, rng.fork(1), best=(answer,))
                parts["constraints"] = self.quote(listed.text)
            side = aside(prompt, filled(self.score, parts | {"answer": self.quote(answer.text)}), self.check_tokens)
            (check,) = yield from replies([side], self.sampling, rng.fork(2, number), best=ranked or (answer,))
            judged = replace(answer, score=read_score(check.text))
            rewards[arm].append((judged.score + 100) / 200 if judged.score is not None else 0.0)
            feedback.setdefault(judged, check.text)
            ranked = tuple(sorted((*ranked, judged), key=rank, reverse=True))
            if (ranked[0].score or 0.0) >= self.accept_from or not is_whole(check):
                break
        return Outcome(ranked, diagnostics={"num_rounds": sum(map(len, rewards)), "pulls": [len(r) for r in rewards]})

    def quote(self, text: str) -> str:
        return quoted(text, self.max_chars)


def chosen(rewards: Sequence[Sequence[float]], diversity: float) -> int:
    """Index of the arm with the largest upper bound; the first among equals."""
    total = sum(map(len, rewards))

    def bound(earned: Sequence[float]) -> float:
        num = len(earned)
        return math.inf if num == 0 else sum(earned) / num + math.sqrt(2 * math.log(total + 1) / num) + diversity / (num + 1)

    return max(range(len(rewards)), key=lambda i: bound(rewards[i]))


def read_score(text: str) -> float | None:
    """The last whole number of a check, cut to -100 .. 100; None without any."""
    found = NUMBER.findall(text)
    return float(max(-100, min(100, int(found[-1][:9])))) if found else None


def rank(c: Candidate) -> tuple[bool, bool, float, tuple[bool, bool, float]]:
    return is_whole(c), c.answer is not None, -101.0 if c.score is None else c.score, standing(c)
