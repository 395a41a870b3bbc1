"""Medprompt: worked examples that the model wrote itself for similar questions, and a vote over the options in every order.

Paper      Nori et al. 2023, "Can Generalist Foundation Models Outcompete Special-Purpose Tuning?", arXiv:2311.16452; 2024, arXiv:2411.03590
Equation   E = the num_shots questions of `pool` most similar to c;  e ~ q(. | e's prompt), kept if its answer is the known one;
           y* = argmax_y #{r : back_r(y(x^r)) = y},  x^r ~ q(. | E, c with its options turned by r),  back_r undoes the turn
Shapes     prompt -> answers to the question as it was asked, the elected one first
Guarantee  biased: a vote; a preference of the model for places of options cancels when num is a multiple of their number
Cost       num_shots + 1 answers (the same for all questions that share them, from a store free), then num answers with long prompts
Choose     questions with options, a pool of solved ones like them, and a model that learns from examples in its prompt; the 2024 paper:
           not with reasoning models. Without options and pool it is self_consistency.
Differs    options are turned, not shuffled, so that each stands in each place equally often; similarity is of words, any function may
           be given; an elected letter that no answer to the original order gave is written out under a form
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Choice, Extend, Outcome, Prefix, Prompt, Sampling, Turn, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import best_first, is_whole, one_each, voted
from ponder.infer.prompting import again, check_template, filled, listed, replies

FEW_SHOTS = "Worked examples:\n\n{examples}\n\nNow this question:\n\n{question}"
LETTERED = re.compile(r"^(\(?([A-Z])[).:] +)(.+)$", re.MULTILINE)  # "A. iron", "(B) tin": one option per line
LISTED = re.compile(r"^(Options: *)(.+)$", re.MULTILINE)  # "Options: iron, tin": named by their texts


@dataclass(frozen=True)
class Solved:
    """A question of the pool and its known answer, in the form that its own prompt reads."""

    prompt: Prompt
    answer: str


def shared_words(a: str, b: str) -> float:
    """Share of different words that two texts have in common."""
    ours, theirs = (set(re.findall(r"\w+", text.casefold())) for text in (a, b))
    return len(ours & theirs) / max(1, len(ours | theirs))


@dataclass(frozen=True, kw_only=True)
class Medprompt:
    pool: tuple[Solved, ...] = ()  # solved questions that examples are taken from
    num_shots: int = 5  # examples looked for
    num: int = 5  # answers that vote, each to another turn of the options
    similarity: Callable[[str, str], float] = shared_words  # of two questions
    few_shots: str = FEW_SHOTS  # template of {question} and {examples}
    max_chars: int = 8000  # shown of all examples together
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if self.num_shots < 0 or min(self.num, self.max_chars) < 1:
            raise BadField(f"medprompt num={self.num}, num_shots={self.num_shots}: must be at least 1 and 0, limits at least 1")
        check_template("medprompt few_shots", self.few_shots, ("question", "examples"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        near = sorted(self.pool, key=lambda s: self.similarity(s.prompt.question, prompt.question), reverse=True)[: self.num_shots]
        shots: list[str] = []
        plain: tuple[Candidate, ...] = ()  # answer without examples: what stands while they are made; it has no vote
        if near:
            *told, first = yield from replies([*(s.prompt for s in near), prompt], self.sampling, rng.fork(0))
            plain = (first,)
            shots = [f"{s.prompt.question}\n{c.text}" for s, c in zip(near, told, strict=True) if is_right(s, c)]
        texts = [turned(prompt.question, turn) for turn in range(self.num)]
        if shots:
            examples = listed(shots[::-1], self.max_chars, "Example")  # the most similar one stands last, next to the question
            texts = [filled(self.few_shots, {"question": text, "examples": examples}) for text in texts]
        drawn = yield from replies([again(prompt, text) for text in texts], self.sampling, rng, best=plain)
        size = len(LETTERED.findall(prompt.question))
        votes = [replace(c, answer=turned_back(c.answer, prompt.question, turn)) for turn, c in enumerate(drawn)]
        outcome = voted(votes, one_each(votes), prompt)
        original = (*best_first([c for turn, c in enumerate(drawn) if size == 0 or turn % size == 0]), *plain)
        winner = outcome.candidates[0].answer
        agreeing = [c for c in original if winner is not None and c.answer is not None and prompt.answers.same(c.answer, winner)]
        if winner is not None and not agreeing:
            form = Choice((f"The answer is ({winner}).",))
            (said,) = yield Turn((Extend(prefix=Prefix(replace(prompt, form=form)), seed=rng.seed(self.num)),), original)
            agreeing = [candidate(replace(said.prefix, prompt=prompt))]
        others = [c for c in original if c not in agreeing]
        ranked = (*agreeing, *sorted(others, key=is_whole, reverse=True))
        return Outcome(ranked, outcome.confidence, outcome.diagnostics | {"num_shots": len(shots), "num_options": size})


def is_right(solved: Solved, told: Candidate) -> bool:
    return told.answer is not None and solved.prompt.answers.same(told.answer, solved.answer)


def turned(question: str, turn: int) -> str:
    """`question` with its options moved on by `turn` places; letters stay where they are."""
    if options := [match[3] for match in LETTERED.finditer(question)]:
        moved = iter(rotated(options, turn))
        return LETTERED.sub(lambda match: match[1] + next(moved), question)
    return LISTED.sub(lambda match: match[1] + ", ".join(rotated(re.split(r", *", match[2]), turn)), question)


def turned_back(answer: str | None, question: str, turn: int) -> str | None:
    """The letter in the original order of an answer to `turned(question, turn)`; anything but a letter of it as it is."""
    letters = [match[2] for match in LETTERED.finditer(question)]
    if answer is None or answer.upper() not in letters:
        return answer
    return letters[(letters.index(answer.upper()) - turn) % len(letters)]


def rotated(options: Sequence[str], turn: int) -> list[str]:
    """Option i stands at place i + turn."""
    at = -turn % len(options)
    return [*options[at:], *options[:at]]
