"""The roles: seams between rooms. One Protocol each; techniques are plain objects that fit.

Strategy    asks and answers over particles               infer/
Op          particles -> particles, may ask               infer/ops
Resampler   (log_w, num, rng) -> ancestors                infer/resample/
Kernel      state -> (state, log-weight increments)       what `advance` and `move` run
StopRule    answers drawn so far -> how many to draw next infer/stop/
Verifier    candidates -> verdicts                        verify/
Probe       hidden states -> values (core/probe)          verify/
Process     answers asks, many at once                    engine/, testing/
Drafter     contexts -> trees of guessed tokens           accelerate/draft/    (core/draft)
Acceptor    (tree, target's rows) -> path, token          accelerate/accept/   (core/draft)
LengthControl  how much to guess ahead, zero included     accelerate/length/   (core/draft)
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ponder.core.asks import Answer, Ask, Candidate, Outcome, Prompt, Turn, Verdict
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Particles, State
from ponder.core.rng import Rng

Asking = Generator[Turn, Sequence[Answer], Outcome]  # a running strategy


class Strategy(Protocol):
    """Settings in a frozen object; progress lives in the generator. Imports no engine and does no I/O.

    A pure function of (prompt, rng, answers): with the same three it yields the same turns. Every turn carries its best
    candidates so far. When the budget is spent its asks are answered for free (core.asks) and it must come to its end.

    One whose answer is the text of its first Extend, whatever else it draws, says so by a true attribute `is_direct`: that text
    can be shown while it grows.
    """

    @property
    def guarantee(self) -> Guarantee: ...

    def run(self, prompt: Prompt, rng: Rng) -> Asking: ...


class Op(Protocol):
    """Particles -> particles. `run` is a generator so that it may ask; one that needs no model returns without yielding.

    Composable with `>>`; the result's guarantee is the weakest of both. Never modifies its input.
    """

    @property
    def guarantee(self) -> Guarantee: ...

    def run(self, particles: Particles, rng: Rng) -> Generator[Turn, Sequence[Answer], Particles]: ...


class Kernel(Protocol):
    """Moves every item of a state. Returns the new state and float64 [N] log-weight increments. May yield turns.

    guarantee: EXACT where the increments are zero and the kernel is the stated one, UNBIASED where the increments correct it.
    Uses rng.seed(i) for what it asks about item i.
    """

    @property
    def guarantee(self) -> Guarantee: ...

    def __call__(self, state: State, rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[State, Tensor]]: ...


class Resampler(Protocol):
    """log_w float64 [N] unnormalised -> ancestors int64 [num]. Never picks a dead particle; E count_i = num * W_i.

    Raises DeadParticles when all are dead, BadWeight on NaN. Uses no randomness but `rng`.
    """

    def __call__(self, log_w: Tensor, num: int, rng: Rng) -> Tensor: ...


class StopRule(Protocol):
    """Says when enough answers were drawn for a vote. Pure, and no randomness.

    error: most that the chance may be that drawing all would have elected another answer, when the share of the two
    leading answers is uniform a priori; 0 when that can never be.
    """

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def error(self) -> float: ...

    def more(self, labels: Sequence[int | None], left: int) -> int:
        """How many of the `left` answers to draw next; 0 stops. labels: see votes.labels, in the order of drawing."""
        ...


class Verifier(Protocol):
    """Judges candidates in two pure phases, so that the driver can batch what it needs from the model.

    `asks` names what the process must answer first (empty for most); `judge` gets those answers in order and returns one
    verdict per candidate. An answer may be empty when the budget is spent: abstain. Never raises for bad text: abstain.

    One that reads hidden states names its probes in an attribute `probes`: the driver adds them to every Extend of the
    strategy, so that candidates carry their readings. Where they do not, it asks for them (Read).
    """

    @property
    def name(self) -> str: ...

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]: ...

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]: ...


@dataclass(frozen=True)
class Progress:
    """What one unfinished ask has cost so far; `row_tokens` is what the last step computed for it."""

    prompt_tokens: int
    generated_tokens: int
    row_tokens: int


class Process(Protocol):
    """A generative model that answers asks, many at once. One step is one forward pass over all of them.

    `add` takes any ask but Judge; it raises PromptTooLong before any work, BadField for a probe that does not know this
    model's states. Answers to equal asks are equal, whatever runs beside them, and probes change nothing but readings.
    One that cannot answer everything says in an attribute `offers` what it can (core.needs), and `add` raises NotOffered for the rest.
    `cancel` frees the ask's work at once and returns what there is, with finish "budget".

    One that can tell how far an Extend under way has come has a method `partial(ticket) -> Extension | None`: tokens and sums so far,
    the prefix open, finish "limit"; its text is what will stay, without the beginning of a stop string or half a character.
    """

    model_id: str  # equal only for equal weights, tokenizer and formats: part of the sample store's key
    context_len: int  # most tokens of prompt + completion

    def prompt_len(self, prompt: Prompt) -> int:
        """Number of tokens of the prompt as the model will read it."""
        ...

    def flops(self, num_tokens: int, context_len: int) -> float:
        """Forward-pass FLOPs of computing num_tokens that attend to context_len tokens each."""
        ...

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        """Queues an ask and returns its ticket. max_tokens caps what it may generate (a reservation of the budget)."""
        ...

    def step(self) -> list[tuple[int, Answer]]:
        """One forward pass; returns tickets that are finished, with their answers (cost filled, seconds not)."""
        ...

    def progress(self) -> dict[int, Progress]:
        """State of every unfinished ticket after the last step."""
        ...

    def cancel(self, ticket: int) -> Answer: ...
