"""IAD: draw answers, then draw better ones from the best and the worst so far and what the verifier said of them.

Paper      Chakraborty et al. 2025, "Review, Refine, Repeat: Iterative Decoding of AI Agents", arXiv:2504.01931
Equation   D_0 = {x^i ~ q(. | c)};  D_{t+1} = D_t + {x^i ~ q(. | improve(c, argmax_D R, argmin_D R, R))};  x* = argmax over all of R
Shapes     prompt -> width (1 + rounds) candidates, best first
Guarantee  biased: the maximum of R over answers that R itself steered
Cost       width (1 + rounds) answers and as many verdicts, in 1 + rounds batches; later prompts hold two answers
Choose     with a verifier that sees more than right or wrong (a share of tests passed, a similarity), and a model that can use two examples.
           With a yes-or-no verifier or a small model: best_of_n, of which this is the round 0.
Differs    answers of all rounds stay in the race; a text without an answer stands behind every answer, whatever its verdict; a
           verdict's detail is shown beside its value
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Judge, Outcome, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.votes import is_whole, standing
from ponder.infer.ops import sampled
from ponder.infer.prompting import again, check_template, filled, quoted, replies

IMPROVE = """{question}

The best answer so far:
{best}
What was said of it:
{best_verdict}

A poor answer:
{worst}
What was said of it:
{worst_verdict}

Write an answer that is better than the best one and avoids what is wrong with the poor one."""


@dataclass(frozen=True, kw_only=True)
class Iad:
    verifier: Verifier  # larger verdicts are better
    width: int = 4  # answers per round
    rounds: int = 2  # after the first
    improve: str = IMPROVE  # template of {question}, {best}, {best_verdict}, {worst} and {worst_verdict}
    max_chars: int = 3000  # shown of an answer, and of a verdict
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.width < 1 or self.rounds < 0 or self.max_chars < 1:
            raise BadField(f"iad width={self.width}, rounds={self.rounds}: width must be at least 1, rounds at least 0, limits at least 1")
        check_template("iad improve", self.improve, ("question", "best", "best_verdict", "worst", "worst_verdict"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        drawn = yield from sampled(prompt, self.width, self.sampling, rng)
        ranked = yield from self.judged(prompt, drawn, ())
        leaders = [ranked[0].score]
        for number in range(self.rounds):
            if not is_whole(ranked[0]):
                break
            new = yield from replies([again(prompt, self.improved(prompt, ranked))] * self.width, self.sampling, rng.fork(number), best=ranked)
            if not any(map(is_whole, new)):  # the budget is spent
                break
            ranked = yield from self.judged(prompt, new, ranked)
            leaders.append(ranked[0].score)
        return Outcome(ranked, diagnostics={"num_rounds": len(leaders), "best_scores": [x for x in leaders if x is not None]})

    def judged(
        self, prompt: Prompt, new: Sequence[Candidate], ranked: tuple[Candidate, ...]
    ) -> Generator[Turn, Sequence[Answer], tuple[Candidate, ...]]:
        """All of them, best first; `ranked` before equal new ones."""
        shown = ranked or tuple(sorted(new, key=standing, reverse=True))
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=prompt, candidates=tuple(new)),), shown)
        judged = [replace(c, score=v.value, verdicts=(v,)) for c, v in zip(new, told.verdicts, strict=True)]
        return tuple(sorted((*ranked, *judged), key=rank, reverse=True))

    def improved(self, prompt: Prompt, ranked: Sequence[Candidate]) -> str:
        whole = [c for c in ranked if is_whole(c)]
        parts = {"question": prompt.question}
        for name, shown in (("best", whole[0]), ("worst", whole[-1])):
            parts |= {name: quoted(shown.text, self.max_chars), f"{name}_verdict": quoted(said(shown), self.max_chars)}
        return filled(self.improve, parts)


def said(c: Candidate) -> str:
    verdict = c.verdicts[0]
    value = "no verdict" if verdict.value is None else f"{verdict.kind} {verdict.value:.4g}"
    return f"{value}\n{verdict.detail}".strip()


def rank(c: Candidate) -> tuple[bool, bool, bool, float, tuple[bool, bool, float]]:
    return is_whole(c), c.answer is not None, c.score is not None, c.score or 0.0, standing(c)
