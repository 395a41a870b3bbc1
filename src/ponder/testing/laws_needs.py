"""Laws of what is known of a strategy's needs before it runs (run.needs): held against what it does on a small model.

`found` are those needs, words of core.needs.
"""

from collections.abc import Callable
from dataclasses import replace

from ponder.core.asks import Answer, Ask, Confer, Extension, Extensions, Judge, Prefix, Prompt
from ponder.core.needs import needs_of
from ponder.core.rng import TorchRng
from ponder.core.roles import Process, Progress, Strategy, Verifier
from ponder.testing.exact import require
from ponder.testing.run import answer_all

Make = Callable[[], Process]
SEEDS = range(3)


def law_asks_need_what_was_found(strategy: Strategy, found: frozenset[str], make: Make, prompt: Prompt) -> None:
    """No ask of the strategy, nor of its verifiers, needs more than what was found."""
    for seed in SEEDS:
        done = answer_all(strategy.run(prompt, TorchRng(seed)), make())
        asked = frozenset[str]().union(*(_needs(ask) for turn in done.turns for ask in turn.asks))
        require(asked <= found, f"{strategy} asked for {sorted(asked - found)}, which was not found beforehand ({sorted(found)})")


def law_reads_what_was_found(strategy: Strategy, found: frozenset[str], make: Make, prompt: Prompt) -> None:
    """A strategy that is not known to need log-probabilities asks for the same, whatever they are: it does not read them.

    What it shows and returns may differ, as ties may go to the likelier."""
    if found & {"log_p", "expand", "score", "probes", "logprobs"}:
        return
    for seed in SEEDS:
        seen = [answer_all(strategy.run(prompt, TorchRng(seed)), process).turns for process in (make(), Blind(make()))]
        told, blind = ([[_shape(ask) for ask in turn.asks] for turn in turns] for turns in seen)
        require(told == blind, f"{strategy} asks for something else when it is not told log-probabilities, which it is not known to need")


def _needs(ask: Ask) -> frozenset[str]:
    if not isinstance(ask, Judge):
        return needs_of(ask)
    verifier: Verifier = ask.verifier  # type: ignore[assignment]  # core.asks cannot name the role
    return frozenset[str]().union(*(needs_of(part) for part in verifier.asks(ask.prompt, ask.candidates)))


def _shape(ask: Ask) -> object:
    """The ask without what log-probabilities it holds."""
    if isinstance(ask, Judge):
        return repr(ask.verifier), [c.text for c in ask.candidates]
    if isinstance(ask, Confer):
        return ask.layout, ask.enough, [_shape(part) for part in ask.asks]
    return repr(replace(ask, prefix=_blind(ask.prefix)))


def _blind(prefix: Prefix) -> Prefix:
    return replace(prefix, log_p=0.0, log_q=0.0, certainty=0.0)


class Blind:
    """A process that tells no log-probabilities of what it draws."""

    def __init__(self, process: Process) -> None:
        self.process, self.model_id, self.context_len = process, process.model_id, process.context_len

    def prompt_len(self, prompt: Prompt) -> int:
        return self.process.prompt_len(prompt)

    def flops(self, num_tokens: int, context_len: int) -> float:
        return self.process.flops(num_tokens, context_len)

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        return self.process.add(ask, max_tokens)

    def step(self) -> list[tuple[int, Answer]]:
        return [(ticket, _untold(answer)) for ticket, answer in self.process.step()]

    def progress(self) -> dict[int, Progress]:
        return self.process.progress()

    def cancel(self, ticket: int) -> Answer:
        return _untold(self.process.cancel(ticket))


def _untold(answer: Answer) -> Answer:
    if isinstance(answer, Extensions):
        return replace(answer, extensions=tuple(replace(part, prefix=_blind(part.prefix)) for part in answer.extensions))
    return replace(answer, prefix=_blind(answer.prefix)) if isinstance(answer, Extension) else answer


LAWS = (law_asks_need_what_was_found, law_reads_what_was_found)
