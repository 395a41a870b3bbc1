"""Atom of thoughts: turn a question into a smaller one with the same answer, again and again, and forget the larger one.

Paper      Teng et al. 2025, "Atom of Thoughts for Markov LLM Test-Time Scaling", arXiv:2502.12018
Equation   Q_{t+1} ~ q(. | contract(Q_t, answers to the sub-questions that need no other)), while the graph of sub-questions has edges;
           x_t ~ q(. | Q_t);  y* = vote(x_0 .. x_T), a tie broken by a judge
Shapes     prompt -> one candidate per question of the chain, the elected one first
Guarantee  biased: a vote over questions that the model believes to be equivalent; x_0's distribution where nothing can be taken apart
Cost       per step: a decomposition (up to 1 + retries tries), the sub-answers in one turn, a contraction and a solution; max_depth steps
Choose     questions that fall into parts, with a model that writes JSON and keeps a question's meaning when it rewrites it (the paper:
           GPT-4o-mini). Small models lose the question: self_consistency.
Differs    sub-questions are answered apart, not read off a solution; an edge points back, so a graph has no cycle; a later question is
           quoted like everything that a model wrote, and the prompt that asks it holds nothing of the earlier one
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.core.asks import Answer, Candidate, Outcome, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole, num_tied, one_each, tally, voted
from ponder.infer.prompting import again, aside, check_template, filled, listed, quoted, replaces, replies

DECOMPOSE = """{question}

Take this apart into the sub-questions that lead to the answer. Reply with JSON only: a list of objects with "question" (text) and
"needs" (numbers of the earlier sub-questions, counted from 1, whose answers it uses), such as
[{"question": "...", "needs": []}, {"question": "...", "needs": [1]}]"""
CONTRACT = """{question}

What is already known:
{known}

Write one shorter question that has the same final answer, states everything known that it needs, and can be understood alone.
Reply with the question only."""
SOLVE = "Answer this question. Reason step by step and end with the final answer.\n\n{question}"
JUDGE = "{question}\n\n{answers}\n\nWhich of these answers is right? Reply with its number only."


@dataclass(frozen=True)
class Atom:
    """A sub-question and the numbers of the earlier ones that it needs."""

    question: str
    needs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AtomOfThoughts:
    max_depth: int = 3  # most contractions
    retries: int = 2  # more tries at a decomposition that is not readable
    decompose: str = DECOMPOSE  # template of {question}
    contract: str = CONTRACT  # template of {question} and {known}
    solve: str = SOLVE  # template of {question}: asks a contracted question, alone
    judge: str = JUDGE  # template of {question} and {answers}
    side_tokens: int = 384  # most tokens of a decomposition, a sub-answer or a contraction
    max_chars: int = 4000  # shown of what a model wrote
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.max_depth, self.retries) < 0 or min(self.side_tokens, self.max_chars) < 1:
            raise BadField(f"atom_of_thoughts max_depth={self.max_depth}, retries={self.retries}: must be at least 0, limits at least 1")
        for name, places in (("decompose", ()), ("contract", ("known",)), ("solve", ()), ("judge", ("answers",))):
            check_template(f"atom_of_thoughts {name}", getattr(self, name), ("question", *places))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        answers: tuple[Candidate, ...] = yield from replies([prompt], self.sampling, rng.fork(0))
        question, depths = prompt.question, list[int]()
        for step in range(self.max_depth):
            atoms = yield from self.atoms(prompt, question, answers, rng.fork(1, step))
            depths.append(depth(atoms))
            if depths[-1] < 2:  # nothing depends on anything: the question is an atom itself
                break
            free = [a.question for a in atoms if not a.needs]
            sides = [self.side(prompt, filled(self.solve, {"question": self.quote(q)})) for q in free]
            told = yield from replies(sides, self.sampling, rng.fork(2, step), best=answers)
            known = listed([f"{q}\n{c.text}" for q, c in zip(free, told, strict=True)], self.max_chars, "Known")
            side = self.side(prompt, filled(self.contract, {"question": question, "known": known}))
            (smaller,) = yield from replies([side], self.sampling, rng.fork(3, step), best=answers)
            if not is_whole(smaller) or not smaller.text.strip():
                break
            question = self.quote(smaller.text)
            (new,) = yield from replies([again(prompt, filled(self.solve, {"question": question}))], self.sampling, rng.fork(4, step), best=answers)
            answers = (*answers, new) if replaces(new, answers[0]) else answers
            if not is_whole(new):
                break
        return (yield from self.elected(prompt, answers, depths, rng.fork(5)))

    def atoms(self, prompt: Prompt, question: str, best: tuple[Candidate, ...], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Atom, ...]]:
        """The graph of sub-questions; empty when no try is readable."""
        side = self.side(prompt, filled(self.decompose, {"question": question}))
        for number in range(1 + self.retries):
            (told,) = yield from replies([side], self.sampling, rng.fork(number), best=best)
            atoms = read_atoms(told.text)
            if atoms or not is_whole(told):
                return atoms
        return ()

    def elected(self, prompt: Prompt, answers: tuple[Candidate, ...], depths: list[int], rng: Rng) -> Asking:
        outcome = voted(answers, one_each(answers), prompt)
        tallies = tally(answers, one_each(answers), prompt.answers)
        told = outcome.diagnostics | {"depths": list(depths), "num_questions": len(answers)}
        if num_tied(tallies) < 2:
            return Outcome(outcome.candidates, outcome.confidence, told)
        tied = [answers[t.members[0]] for t in tallies[: num_tied(tallies)]]
        shown = {"question": prompt.question, "answers": listed([c.text for c in tied], self.max_chars)}
        (choice,) = yield from replies([aside(prompt, filled(self.judge, shown), 8)], self.sampling, rng, best=outcome.candidates)
        number = next((int(c) for c in choice.text if c.isdecimal() and c.isascii() and 1 <= int(c) <= len(tied)), 1)
        first = tied[number - 1]
        rest = [c for c in outcome.candidates if c.tokens != first.tokens or c.text != first.text]
        return Outcome((next(c for c in outcome.candidates if c not in rest), *rest), outcome.confidence, told)

    def side(self, prompt: Prompt, text: str) -> Prompt:
        return aside(prompt, text, self.side_tokens)

    def quote(self, text: str) -> str:
        return quoted(text, self.max_chars)


def read_atoms(text: str) -> tuple[Atom, ...]:
    """The list of sub-questions in a reply; empty unless it is JSON of the asked shape whose needs all point back."""
    try:
        rows = json.loads(text[text.find("[") : text.rfind("]") + 1])
    except (ValueError, RecursionError):
        return ()
    is_graph = isinstance(rows, list) and all(map(is_atom, rows, range(len(rows))))
    return tuple(Atom(row["question"], tuple(row["needs"])) for row in rows) if is_graph else ()


def is_atom(row: object, num_earlier: int) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not isinstance(row.get("needs"), list):
        return False
    return bool(row["question"].strip()) and all(type(n) is int and 1 <= n <= num_earlier for n in row["needs"])


def depth(atoms: Sequence[Atom]) -> int:
    """Longest path of needs, counted in atoms."""
    depths: list[int] = []
    for atom in atoms:
        depths.append(1 + max((depths[n - 1] for n in atom.needs), default=0))
    return max(depths, default=0)
