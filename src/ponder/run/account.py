"""What one job has spent and may still spend. All counts depend on the job's own history alone, never on its neighbours.

A process may share work between jobs (a common prompt header, another strategy's samples). The account books each job
as if it ran alone, so that a comparison is fair and a resumed run books the same; what sharing saved stands in the Ledger.
"""

import math
from dataclasses import dataclass, field, replace

from ponder.core.asks import Ask, Confer, Expand, Extend, Prompt, Read, Score
from ponder.core.budget import Budget, Cost
from ponder.core.roles import Process

SAFETY = 1.5  # strict: a step is expected to take at most this many times the slowest of the last steps


@dataclass
class Ledger:
    """Sums over all jobs of a driver. engine counts what the process really computed for them."""

    booked: Cost = field(default_factory=Cost)
    engine: Cost = field(default_factory=Cost)
    shared_tokens: int = 0  # booked prefix tokens that the process had already computed for somebody else
    recomputed_tokens: int = 0  # prefix tokens that the process computed although the job had paid for them before
    stored_answers: int = 0  # answers that came out of the sample store
    stored: Cost = field(default_factory=Cost)  # what those were booked at
    engine_seconds: float = 0.0  # wall time inside process.step
    verifier_seconds: float = 0.0  # wall time inside verifiers
    wall_seconds: float = 0.0
    steps: int = 0

    @property
    def overhead(self) -> float:
        """Driver and strategy time over engine time."""
        own = self.wall_seconds - self.engine_seconds - self.verifier_seconds
        return own / self.engine_seconds if self.engine_seconds else 0.0

    @property
    def reuse(self) -> float:
        """1 - recomputed / requested prefix tokens, over the answers of the process."""
        return 1.0 - self.recomputed_tokens / max(1, self.engine.prompt_tokens + self.engine.reused_tokens)

    def add(self, booked: Cost, computed: Cost) -> None:
        """Notes what one answer of the process was booked at and what it computed for it."""
        self.engine += computed
        beyond = computed.prompt_tokens - booked.prompt_tokens - (booked.generated_tokens - computed.generated_tokens)
        self.recomputed_tokens += max(0, beyond)
        self.shared_tokens += max(0, -beyond)


class Account:
    """One job's. `book` normalises the cost of an answer; `tokens_left` is what asks may still reserve."""

    def __init__(self, budget: Budget, process: Process) -> None:
        self.budget, self.process = budget, process
        self.cost = Cost()
        self.known: set[object] = set()  # prompts that are paid for, as `read_as` names them
        self.lengths: list[int] = []  # generated tokens of finished Extends
        self.live_seconds = 0.0  # of asks that are not booked yet

    def prompt_price(self, ask: Ask, known: set[object]) -> int:
        """Tokens of the ask's prompts that this job has not paid for yet; what those of a Confer share before their prefills counts once."""
        new = [prompt for name, prompt in prompts_of(ask).items() if name not in known]
        shared = 0
        if len(new) > 1 and len({prompt.messages for prompt in new}) == 1:
            shared = self.process.prompt_len(replace(new[0], prefill=""))
        return sum(self.process.prompt_len(prompt) for prompt in new) - shared * (len(new) - 1)

    def tokens_left(self) -> float:
        """Tokens that every limit still allows; inf without limits. Never negative."""
        left = math.inf
        if self.budget.tokens is not None:
            left = self.budget.tokens - self.cost.tokens
        if self.budget.flops is not None:
            context = self.process.context_len if self.budget.strict else min(1024, self.process.context_len)
            left = min(left, (self.budget.flops - self.cost.flops) / self.process.flops(1, context))
        return max(0.0, left)

    def affords(self, ask: Ask, usd: float, *, is_first: bool) -> bool:
        """Whether the ask may start in $, beside others that may cost `usd`: only if it cannot overspend, but one ask alone may, unless strict."""
        if self.budget.usd is None:
            return True
        left = self.budget.usd - self.cost.usd
        return usd + self.most_usd(ask) <= left or (is_first and left > 0 and not self.budget.strict)

    def most_usd(self, ask: Ask) -> float:
        """Most that the process may bill for the ask; 0 without a limit in $."""
        if self.budget.usd is None:
            return 0.0
        if isinstance(ask, Confer):
            return math.fsum(map(self.most_usd, ask.asks))
        prefix = ask.prefix  # type: ignore[union-attr]
        times = len(ask.options) if isinstance(ask, Score) else 1
        read = times * (self.process.prompt_len(prefix.prompt) + len(prefix.tokens))
        return float(self.process.usd(Cost(prompt_tokens=read, generated_tokens=most_tokens(ask))))  # type: ignore[attr-defined]  # run.needs saw to it

    def calls_left(self) -> float:
        return math.inf if self.budget.calls is None else max(0, self.budget.calls - self.cost.calls)

    def is_late(self, step_seconds: float) -> bool:
        """True when the time is up; under strict, when one more step might be too long."""
        if self.budget.seconds is None:
            return False
        ahead = SAFETY * step_seconds if self.budget.strict else 0.0
        return self.cost.seconds + self.live_seconds + ahead >= self.budget.seconds

    def expected_len(self, ask: Ask) -> int:
        """Most tokens the ask will probably take: its own limit until answers of this job have been seen."""
        limit = most_tokens(ask)
        if self.budget.strict or not self.lengths or not isinstance(ask, Extend):
            return limit
        return min(limit, math.ceil(1.25 * sum(self.lengths) / len(self.lengths)))

    def book(self, ask: Ask, cost: Cost, prompt_tokens: int) -> Cost:
        """The cost of a process's answer as this job books it. prompt_tokens: the prompt's price at admission.

        Every prompt is computed once. What the job itself generated is reused; its last token's forward pass is that of
        the next one: an Extend books what it generated, an Expand one token, a Score its options, a Read what lies between its
        first and its last place, as it must be computed again.
        """
        requested = cost.prompt_tokens + cost.reused_tokens
        prefix = ask.prefix  # type: ignore[union-attr]
        if prompt_tokens and isinstance(ask, Extend) and getattr(self.process, "is_len_guessed", False):
            prompt_tokens = max(0, requested - len(prefix.tokens))  # admission had but a guess
        if isinstance(ask, Score):
            prompt_tokens += max(0, requested - self.process.prompt_len(prefix.prompt) - len(prefix.tokens))
        if isinstance(ask, Read):
            prompt_tokens += most_tokens(ask) - (min(ask.places) == 0 and bool(prompt_tokens))  # the prompt's last token is not paid twice
        generated = int(bool(prefix.tokens)) if isinstance(ask, Expand) else cost.generated_tokens
        context = (requested + generated) // 2
        if isinstance(ask, Confer):  # each reads its own prompt and, on average, half of what all write
            context = requested // len(ask.asks) + generated // 2
        return replace(
            cost, prompt_tokens=prompt_tokens, reused_tokens=max(0, requested - prompt_tokens), generated_tokens=generated,
            flops=self.process.flops(prompt_tokens + generated, context + 1), calls=1,
        )  # fmt: skip


def read_as(prompt: Prompt) -> object:
    """What of a prompt its tokens depend on: prompts that differ in their stops, lengths or forms are computed once."""
    return prompt.messages, prompt.prefill


def prompts_of(ask: Ask) -> dict[object, Prompt]:
    """The prompts of an ask, as `read_as` names them."""
    prompts = [part.prefix.prompt for part in ask.asks] if isinstance(ask, Confer) else [ask.prefix.prompt]  # type: ignore[union-attr]
    return {read_as(prompt): prompt for prompt in prompts}


def least_tokens(ask: Ask) -> int:
    """Fewest tokens beyond the prompt with which the ask may start."""
    return 1 if isinstance(ask, Extend) else len(ask.asks) if isinstance(ask, Confer) else most_tokens(ask)


def most_tokens(ask: Ask) -> int:
    """Most tokens beyond the prompt that the process can compute for the ask."""
    if isinstance(ask, Extend):
        room = ask.prefix.prompt.max_tokens - len(ask.prefix.tokens)
        return room if ask.max_tokens is None else min(room, ask.max_tokens)
    if isinstance(ask, Confer):
        return sum(map(most_tokens, ask.asks))
    if isinstance(ask, Score):
        return sum(len(option.encode()) for option in ask.options)  # a token is at least one byte
    if isinstance(ask, Read):
        return max(ask.places) - min(ask.places) + 1
    return 1
