"""What drafters that run a model share: which of its layers, and chains of its draws. A part of the room, not a technique."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ponder.core.draft import EMPTY, Context, Guess, Runner, Tree, Verified, chain
from ponder.core.errors import BadField


@dataclass(frozen=True)
class Chaining:
    """Draws token after token, each request until it has enough or a token was less likely than `least`. One pass a depth, for all."""

    runner: Runner
    num: int
    least: float
    with_log_q: bool

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        made: list[list[Guess]] = [[] for _ in contexts]
        alive = list(range(len(contexts)))
        while alive := [i for i in alive if len(made[i]) < min(self.num, contexts[i].room, contexts[i].max_depth)]:
            drafts = [[guess.token for guess in made[i]] for i in alive]
            found = self.runner.guess([contexts[i] for i in alive], drafts, with_log_q=self.with_log_q)
            alive = [i for i, guess in zip(alive, found, strict=True) if guess is not None and self._added(made[i], guess)]
        return [tree_of(guesses) for guesses in made]

    def observe(self, verified: Sequence[Verified]) -> None:
        return None

    def forget(self, request: int) -> None:
        self.runner.forget(request)

    def _added(self, guesses: list[Guess], guess: Guess) -> bool:
        """Whether a chain with one more guess goes on. One that is too unlikely ends it; where tokens are weighed by what they were
        drawn from it stays, since to leave it out would change what the others were drawn from."""
        is_likely = guess.chance >= self.least
        if is_likely or self.with_log_q:
            guesses.append(guess)
        return is_likely


def thinned(num_layers: int, ends: int, every: int) -> tuple[int, ...]:
    """Layers left out where the first and last `ends` stay, and of those between one in `every`. Raises BadField where that is none."""
    ends = min(ends, (num_layers - 1) // 2)  # a model of few layers keeps fewer
    found = tuple(i for i in range(ends, num_layers - ends) if (i - ends) % every != every - 1 or num_layers - 2 * ends == 1)
    if not found:
        raise BadField(f"every={every}: leaves out none of {num_layers} layers; lower it")
    return found


def tree_of(guesses: Sequence[Guess]) -> Tree:
    if not guesses:
        return EMPTY
    log_q = [guess.log_q for guess in guesses if guess.log_q is not None]
    tokens, chances = [guess.token for guess in guesses], [min(1.0, guess.chance) for guess in guesses]
    return chain(tokens, torch.stack(log_q) if len(log_q) == len(guesses) else None, chances)
