"""DSER: many long chains of verifying and refining, each accepting whatever comes next; their late answers vote.

Paper      Liu et al. 2025, "Deep Self-Evolving Reasoning", arXiv:2510.17498
Equation   x_{t+1} ~ q(. | refine(c, x_t, v_t)), v_t ~ q(. | verify(c, x_t)): for "right" and "wrong" a Markov chain with
           p_in = P(wrong -> right), p_out = P(right -> wrong), pi = p_in / (p_in + p_out):
           share right after t = pi + (1 - p_in - p_out)^t (share_0 - pi)
Shapes     prompt -> the chains' last answers, the winner's best one first
Guarantee  biased: a vote; it is right in the limit of many chains when p_in > p_out, however small both are
Cost       chains x (1 + 2 steps) answers, in 1 + 2 steps turns
Choose     with a reasoning model that mends more often than it breaks, on questions beyond one answer (the paper: 8B, 80 steps). Small
           models break more than they mend: self_consistency.
Differs    the chain is fitted to the run's own answers, the elected one as "right", and reported; a step that yields no answer is not accepted
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ponder.core.asks import Candidate, Outcome, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.core.votes import is_whole, one_each, voted
from ponder.infer.prompting import again, aside, check_template, filled, quoted, replaces, replies

VERIFY = """{question}

Proposed solution:
{answer}

Check every step of the proposed solution. Say which step is wrong and why, or that all are right."""
REFINE = """{question}

Proposed solution:
{answer}

What a check of it found:
{check}

Solve the problem, using what is right in the proposed solution and mending what is wrong."""


@dataclass(frozen=True)
class Markov:
    """Two states; `share` is the chance of the first one."""

    p_in: float  # chance of coming into it in one step
    p_out: float  # chance of leaving it

    @property
    def stationary(self) -> float:
        """Share that one step leaves unchanged; 1/2 for a chain that never moves."""
        moves = self.p_in + self.p_out
        return self.p_in / moves if moves else 0.5

    def after(self, steps: int, share: float) -> float:
        return self.stationary + (1 - self.p_in - self.p_out) ** steps * (share - self.stationary)


def fitted(chains: Sequence[Sequence[bool]]) -> Markov:
    """Maximum likelihood from sequences of states; a state that is never left from counts as staying."""
    moves = [(a, b) for chain in chains for a, b in itertools.pairwise(chain)]
    froms = [sum(1 for a, _ in moves if a is state) for state in (False, True)]
    turns = [sum(1 for a, b in moves if a is state and b is not state) for state in (False, True)]
    p_in, p_out = (turned / total if total else 0.0 for turned, total in zip(turns, froms))
    return Markov(p_in, p_out)


@dataclass(frozen=True, kw_only=True)
class Dser:
    chains: int = 4  # run beside each other
    steps: int = 3  # refinements of each
    num_late: int = 1  # last answers of each chain that vote
    verify: str = VERIFY  # template of {question} and {answer}
    refine: str = REFINE  # template of {question}, {answer} and {check}
    check_tokens: int = 256  # most tokens of a check
    max_chars: int = 4000  # shown of an answer or check
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))  # how each token is drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        if min(self.chains, self.num_late, self.check_tokens, self.max_chars) < 1 or self.steps < 0 or self.num_late > self.steps + 1:
            raise BadField(
                f"dser chains={self.chains}, steps={self.steps}, num_late={self.num_late}: must be at least 1, 0 and 1, num_late at most steps + 1"
            )
        check_template("dser verify", self.verify, ("question", "answer"))
        check_template("dser refine", self.refine, ("question", "answer", "check"))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        first = yield from replies([prompt] * self.chains, self.sampling, rng)
        chains: list[tuple[Candidate, ...]] = [(c,) for c in first]
        for step in range(self.steps):
            if not all(is_whole(chain[-1]) for chain in chains):
                break
            best = self.elected(chains, prompt).candidates
            shown = [{"question": prompt.question, "answer": quoted(chain[-1].text, self.max_chars)} for chain in chains]
            sides = [aside(prompt, filled(self.verify, parts), self.check_tokens) for parts in shown]
            checks = yield from replies(sides, self.sampling, rng.fork(0, step), best=best)
            prompts = [
                again(prompt, filled(self.refine, parts | {"check": quoted(c.text, self.max_chars)})) for parts, c in zip(shown, checks, strict=True)
            ]
            new = yield from replies(prompts, self.sampling, rng.fork(1, step), best=best)
            chains = [(*chain, c if replaces(c, chain[-1]) else chain[-1]) for chain, c in zip(chains, new, strict=True)]
            if not any(is_whole(c) for c in new):  # the budget is spent
                break
        outcome = self.elected(chains, prompt)
        winner = outcome.candidates[0].answer
        is_winner = lambda c: winner is not None and c.answer is not None and prompt.answers.same(winner, c.answer)
        markov = fitted([[is_winner(c) for c in chain] for chain in chains])
        told = {"p_in": markov.p_in, "p_out": markov.p_out, "stationary": markov.stationary, "num_steps": len(chains[0]) - 1}
        return replace(outcome, diagnostics=outcome.diagnostics | told)

    def elected(self, chains: Sequence[Sequence[Candidate]], prompt: Prompt) -> Outcome:
        late = [c for chain in chains for c in chain[-self.num_late :]]
        return voted(late, one_each(late), prompt)
