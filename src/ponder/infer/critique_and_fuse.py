"""Critique and fuse: several answers, a critique of each, and a new answer that keeps what is good in all of them.

Paper      Saad-Falcon et al. 2024, "Archon" (critic and fuser layers), arXiv:2409.15254; Jiang et al. 2023 (fusion), arXiv:2306.02561
Equation   x^i ~ q(. | c), i = 1 .. num;  f ~ q(. | critique(c, x^1 .. x^num));  z^j ~ q(. | fuse(c, x^1 .. x^num, f));  y* = vote(z^1 .. z^num_fused)
Shapes     prompt -> the fused answers, the winner's best one first, then the first ones by their vote
Guarantee  biased: a vote over what the model makes of its own answers
Cost       num + 1 + num_fused answers in three turns; nothing after the first num where all of these agree
Choose     open answers, several of which are partly right, and a model that follows long prompts (the paper: 7B up, answers of several
           models). Short answers and small models: self_consistency.
Differs    one model; answers that agree by the reader are not fused; fused texts without an answer leave the first vote as it is
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Outcome, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole, labels, one_each, voted
from ponder.infer.ops import sampled
from ponder.infer.prompting import again, aside, check_template, filled, listed, quoted, replaces, replies

CRITIQUE = """{question}

{answers}

For each of these answers, say in a few sentences what is right in it and what is wrong."""
FUSE = """{question}

{answers}

What a reviewer says about them:
{critique}

Write one answer that keeps what is right in them and leaves out what is wrong."""


@dataclass(frozen=True, kw_only=True)
class CritiqueAndFuse:
    num: int = 4  # answers
    num_fused: int = 2  # fused answers, which vote
    critique: str = CRITIQUE  # template of {question} and {answers}
    fuse: str = FUSE  # template of {question}, {answers} and {critique}
    critique_tokens: int = 512  # most tokens of the critique
    max_chars: int = 8000  # shown of all answers together, and of the critique
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.num, self.critique_tokens, self.max_chars) < 1 or self.num_fused < 0:
            raise BadField(f"critique_and_fuse num={self.num}, num_fused={self.num_fused}: must be at least 1 and 0, limits at least 1")
        check_template("critique_and_fuse critique", self.critique, ("question", "answers"))
        check_template("critique_and_fuse fuse", self.fuse, ("question", "answers", "critique"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        answers = yield from sampled(prompt, self.num, self.sampling, rng)
        plain = voted(answers, one_each(answers), prompt)
        best = plain.candidates
        if self.num_fused == 0 or is_agreed(answers, prompt):
            return self.outcome(plain, (), prompt)
        texts = list(dict.fromkeys(c.text for c in best if is_whole(c) and c.text)) or [best[0].text]
        parts = {"question": prompt.question, "answers": listed(texts, self.max_chars)}
        side = aside(prompt, filled(self.critique, parts), self.critique_tokens)
        (critique,) = yield from replies([side], self.sampling, rng.fork(0), best=best)
        if not is_whole(critique):
            return self.outcome(plain, (), prompt)
        parts["critique"] = quoted(critique.text, self.max_chars)
        asked = again(prompt, filled(self.fuse, parts))
        fused = yield from replies([asked] * self.num_fused, self.sampling, rng.fork(1), best=best)
        return self.outcome(plain, fused, prompt)

    def outcome(self, plain: Outcome, fused: Sequence[Candidate], prompt: Prompt) -> Outcome:
        """The vote of the fused answers before the first ones; those that may not replace the best of these after them."""
        worthy = [c for c in fused if replaces(c, plain.candidates[0])]
        rest = [c for c in fused if c not in worthy]
        told = {"num_fused": len(worthy), "num_rejected": len(rest)}
        if not worthy:
            return replace(plain, candidates=(*plain.candidates, *rest), diagnostics=plain.diagnostics | told)
        new = voted(worthy, one_each(worthy), prompt)
        return replace(new, candidates=(*new.candidates, *plain.candidates, *rest), diagnostics=new.diagnostics | told)


def is_agreed(answers: Sequence[Candidate], prompt: Prompt) -> bool:
    """Whether all are the same by the reader, or none is whole."""
    return set(labels(answers, prompt.answers)) == {0} or not any(map(is_whole, answers))
