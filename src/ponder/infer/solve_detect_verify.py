"""Solve-detect-verify: stop thinking once the solution is complete, check it cheaply where checks agree, and mend it once where they find a fault.

Paper      Zhong et al. 2025, "Solve-Detect-Verify: Inference-Time Scaling with Flexible Generative Verifier", arXiv:2505.11966
Equation   solve until a cue of `cues`; done when P(Yes | complete?) >= complete_from;  num_fast short checks: their majority holds when its
           share is at least agree_from, else one long check decides;  wrong: solve again with what a long check found, up to `rounds` times
Shapes     prompt -> the solutions, the last accepted one first
Guarantee  biased: the answer that a check of the model itself lets pass
Cost       one solution, cut short at best; per check num_fast short replies, and one long one where they disagree
Choose     with reasoning models that go on after the answer is found, and can check. Models that say Yes to anything pay for checks
           that never fail: self_consistency.
Differs    the paper's verifier is a trained model (FlexiVe); here the solver itself. A solution that was stopped is ended by a short reply
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Extend, Outcome, Prefix, Prompt, Sampling, Score, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole
from ponder.infer.prompting import again, aside, chance_of_first, check_template, filled, quoted, replaces, replies

COMPLETE = "{question}\n\nReasoning so far:\n{answer}\n\nDoes it already reach the final answer? Reply with Yes or No."
CONCLUDE = "{question}\n\nReasoning:\n{answer}\n\nState the final answer that this reasoning reaches, in one sentence."
FAST = "{question}\n\nProposed solution:\n{answer}\n\nIs the final answer correct? Reply with Yes or No."
SLOW = "{question}\n\nProposed solution:\n{answer}\n\nCheck it step by step. End with a line that says Yes when it is correct, or No."
MEND = "{question}\n\nProposed solution:\n{answer}\n\nA check of it says:\n{check}\n\nSolve the problem again without this mistake."
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
Step = Generator[Turn, Sequence[Answer], Candidate]


@dataclass(frozen=True, kw_only=True)
class SolveDetectVerify:
    rounds: int = 1  # most times that a solution is mended
    num_fast: int = 4  # short checks of each solution
    agree_from: float = 0.75  # share of them that decides without a long one
    cues: tuple[str, ...] = ("Wait", "Alternatively", "Hmm", "But let me")  # of hesitation; none: solutions are never stopped
    complete_from: float = 0.5  # P(Yes) at which a solution is stopped
    max_cues: int = 4  # most times that a solution is looked at
    complete: str = COMPLETE  # this and the next three: templates of {question} and {answer}
    conclude: str = CONCLUDE
    fast: str = FAST
    slow: str = SLOW
    mend: str = MEND  # template of {question}, {answer} and {check}
    slow_tokens: int = 512  # most tokens of a long check
    max_chars: int = 6000  # shown of a solution or check
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.rounds < 0 or min(self.num_fast, self.slow_tokens, self.max_chars) < 1 or not 0.5 <= self.agree_from <= 1:
            raise BadField(
                f"solve_detect_verify rounds={self.rounds}, num_fast={self.num_fast}, agree_from={self.agree_from}: must be at least 0, "
                "at least 1, and in [0.5, 1]"
            )
        for name in ("complete", "conclude", "fast", "slow"):
            check_template(f"solve_detect_verify {name}", getattr(self, name), ("question", "answer"))
        check_template("solve_detect_verify mend", self.mend, ("question", "answer", "check"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        first = yield from self.solved(prompt, prompt, rng.fork(0), ())
        answers: tuple[Candidate, ...] = (first,)
        checks: list[str] = []
        for number in range(self.rounds + 1):
            if not is_whole(answers[0]):
                break
            is_right, check = yield from self.checked(prompt, answers, rng.fork(1, number))
            checks.append("accepted" if is_right else "rejected")
            if is_right or number == self.rounds:
                break
            parts = {"question": prompt.question, "answer": quoted(answers[0].text, self.max_chars), "check": quoted(check, self.max_chars)}
            mended = yield from self.solved(again(prompt, filled(self.mend, parts)), prompt, rng.fork(2, number), answers)
            answers = (mended, *answers) if replaces(mended, answers[0]) else (*answers, mended)
        return Outcome(answers, diagnostics={"checks": list(checks), "num_solutions": len(answers)})

    def solved(self, asked: Prompt, prompt: Prompt, rng: Rng, best: tuple[Candidate, ...]) -> Step:
        """A whole answer to `asked`, stopped at the first cue where the model says that it is complete."""
        prefix = Prefix(asked)
        for number in range(self.max_cues + 1):
            until = self.cues if number < self.max_cues else ()
            ask = Extend(prefix=prefix, seed=rng.seed(number), until=until, sampling=self.sampling, certainty=True)
            (told,) = yield Turn((ask,), best or shown(prefix))
            prefix = told.prefix
            if prefix.is_final:
                break
            parts = {"question": prompt.question, "answer": quoted(prefix.text, self.max_chars)}
            side = aside(prompt, filled(self.complete, parts), 1)
            (scores,) = yield Turn((Score(prefix=Prefix(side), options=("Yes", "No")),), best or shown(prefix))
            if chance_of_first(scores.log_p) >= self.complete_from:
                (ended,) = yield from replies([again(prompt, filled(self.conclude, parts))], self.sampling, rng.fork(0), best=best or shown(prefix))
                halted = candidate(replace(prefix, finish="budget"))
                return ended if replaces(ended, halted) else halted
        return candidate(prefix)

    def checked(self, prompt: Prompt, answers: tuple[Candidate, ...], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[bool, str]]:
        """(whether the first answer passes, what the check said). Checks that say neither Yes nor No let it pass."""
        parts = {"question": prompt.question, "answer": quoted(answers[0].text, self.max_chars)}
        fast = yield from replies([aside(prompt, filled(self.fast, parts), 4)] * self.num_fast, self.sampling, rng.fork(0), best=answers)
        votes = [v for v in (says_yes(c.text) for c in fast) if v is not None]
        share = sum(votes) / len(votes) if votes else 1.0
        if share >= self.agree_from:
            return True, ""
        (slow,) = yield from replies([aside(prompt, filled(self.slow, parts), self.slow_tokens)], self.sampling, rng.fork(1), best=answers)
        verdict = says_yes(slow.text) if share > 1 - self.agree_from else False
        return (share >= 0.5 if verdict is None else verdict), slow.text


def says_yes(text: str) -> bool | None:
    """By the last Yes or No in it; None without any."""
    found = YES_NO.findall(text)
    return found[-1].lower() == "yes" if found else None


def shown(prefix: Prefix) -> tuple[Candidate, ...]:
    return (candidate(prefix),) if prefix.tokens else ()
