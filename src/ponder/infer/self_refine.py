"""Self-refine: the model criticises its own answer and writes it anew, until it finds no fault.

Paper      Madaan et al. 2023, arXiv:2303.17651
Equation   x_0 ~ q(. | c);  f_t ~ q(. | critique(c, x_t));  x_{t+1} ~ q(. | revise(c, x_t, f_t)) until f_t holds `done`
Shapes     prompt -> the answers in falling order of age, the last one first
Guarantee  biased: whatever the model makes of its own critique; x_0's distribution exactly where the critic finds no fault
Cost       up to 1 + 2 rounds answers, one after the other; every prompt holds the answer again
Choose     with a model that can criticise (the paper: 13B up; 7B and smaller seldom gain). With a verifier: iad. Small models:
           self_consistency, which costs as much and loses nothing.
Differs    answers and critiques are quoted; an answer is never replaced by a text that holds none; critiques of earlier rounds are
           not shown again, so that prompts do not grow
"""

from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Candidate, Outcome, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole
from ponder.infer.prompting import again, aside, check_template, filled, quoted, replaces, replies

CRITIQUE = """{question}

Proposed answer:
{answer}

List every mistake in the proposed answer, most serious first. If there is none, reply with NO MISTAKES."""
REVISE = """{question}

Proposed answer:
{answer}

What a reviewer says about it:
{critique}

Write the whole answer anew, with these mistakes mended."""


@dataclass(frozen=True, kw_only=True)
class SelfRefine:
    rounds: int = 2  # most critiques
    done: str = "NO MISTAKES"  # a critique that holds this ends the rounds; case does not matter
    critique: str = CRITIQUE  # template of {question} and {answer}
    revise: str = REVISE  # template of {question}, {answer} and {critique}
    critique_tokens: int = 256  # most tokens of a critique
    max_chars: int = 4000  # shown of an answer or critique; the middle of a longer one is left out
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.critique_tokens < 1 or self.max_chars < 1 or not self.done:
            raise BadField(f"self_refine rounds={self.rounds}, done={self.done!r}: rounds must be at least 0, done not empty, limits at least 1")
        check_template("self_refine critique", self.critique, ("question", "answer"))
        check_template("self_refine revise", self.revise, ("question", "answer", "critique"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        answers: tuple[Candidate, ...] = yield from replies([prompt], self.sampling, rng.fork(0))
        rejected: tuple[Candidate, ...] = ()
        told = "no round left"
        for number in range(self.rounds):
            parts = {"question": prompt.question, "answer": quoted(answers[0].text, self.max_chars)}
            side = aside(prompt, filled(self.critique, parts), self.critique_tokens)
            (critique,) = yield from replies([side], self.sampling, rng.fork(1, number), best=answers)
            if not is_whole(critique) or not critique.text or self.done.lower() in critique.text.lower():
                told = "no fault found" if is_whole(critique) and critique.text else "no critique"
                break
            parts["critique"] = quoted(critique.text, self.max_chars)
            (revised,) = yield from replies([again(prompt, filled(self.revise, parts))], self.sampling, rng.fork(2, number), best=answers)
            if replaces(revised, answers[0]):
                answers = (revised, *answers)
            else:
                rejected = (revised, *rejected)
        num_revised = len(answers) - 1
        return Outcome((*answers, *rejected), diagnostics={"ended": told, "num_revised": num_revised, "num_rejected": len(rejected)})
