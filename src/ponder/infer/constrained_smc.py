"""SMC under constraints: answers that fulfil them, with the model's own probabilities, and the mass of all that do.

Paper      Lew et al. 2023, arXiv:2306.03081; Loula et al. 2025, arXiv:2504.13139
Equation   log w += log p(s_t) - log q(s_t) + sum_j [phi_j(x_1..t) - phi_j(x_1..t-1)];  at the end phi_j is that of a whole answer
Shapes     prompt -> num candidates, the answer first
Guarantee  biased with pick=vote or argmax; unbiased with drawn, for p(x) 1[x in form] exp(sum_j phi_j(x)); so is exp(log_evidence)
Cost       about the tokens of num plain answers; constraints cost no tokens
Choose     when an answer must be in a form, or must (not) hold something, and masking alone would change what the model prefers
Differs    a form masks the proposal as everywhere; a proposal of low temperature is corrected too. When all particles have died
           the run says so (DeadParticles) instead of answering something forbidden
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.asks import Answer, Prefix, Prompt, Sampling, Turn
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Batch, as_log_weights
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Resampler
from ponder.core.weights import check_weights, normalize
from ponder.infer.compose import While
from ponder.infer.ops import Advance, ExtendStep, Judged, Resample, Spawn, kept, start
from ponder.infer.picks import Pick, candidates_of, drawn, history, is_open, picked, standings, vote


class Constraint(Protocol):
    """A log factor of a text. begun(x) may be -inf only where every answer that begins with x has whole(..) = -inf."""

    def begun(self, text: str) -> float:
        """Of the beginning of an answer; begun("") is the 0 to count from."""
        ...

    def whole(self, text: str) -> float:
        """Of a finished answer."""
        ...


@dataclass(frozen=True)
class Without:
    """None of `words` may stand in the answer."""

    words: tuple[str, ...]

    def begun(self, text: str) -> float:
        return -math.inf if any(word in text for word in self.words) else 0.0

    def whole(self, text: str) -> float:
        return self.begun(text)


@dataclass(frozen=True)
class With:
    """Each of `words` must stand in the answer. Already there counts `bonus` nats on the way, and nothing in the end."""

    words: tuple[str, ...]
    bonus: float = 2.0

    def begun(self, text: str) -> float:
        return self.bonus * sum(word in text for word in self.words)

    def whole(self, text: str) -> float:
        return 0.0 if all(word in text for word in self.words) else -math.inf


@dataclass(frozen=True)
class ConstrainedStep:
    """Kernel on Batch[Judged]: a corrected step, weighed by how the constraints' factors changed; log_r is their present sum."""

    extend: ExtendStep
    constraints: tuple[Constraint, ...]

    @property
    def guarantee(self) -> Guarantee:
        return weakest((Guarantee.UNBIASED, self.extend.guarantee))

    def __call__(self, state: Batch[Judged], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Judged], Tensor]]:
        grown, log_g = yield from self.extend(Batch(tuple(item.prefix for item in state)), rng)
        items = tuple(old if old.prefix.is_final else Judged(new, self.log_factor(new)) for old, new in zip(state, grown, strict=True))
        return Batch(items), log_g + as_log_weights([new.log_r - old.log_r for old, new in zip(state, items)])

    def log_factor(self, prefix: Prefix) -> float:
        """An answer that the budget cut is a beginning."""
        is_whole = prefix.is_final and prefix.finish != "budget"
        return math.fsum(c.whole(prefix.text) if is_whole else c.begun(prefix.text) for c in self.constraints)


@dataclass(frozen=True, kw_only=True)
class ConstrainedSMC:
    num: int  # particles
    resampler: Resampler  # systematic unless there is a reason
    constraints: tuple[Constraint, ...] = ()  # besides the prompt's form
    ess_below: float | None = 0.5  # resample when the effective sample size is below this share of num; None: always
    until: tuple[str, ...] = ()  # ends of a step
    step_tokens: int | None = 4  # most tokens of one step
    sampling: Sampling = field(default_factory=Sampling)  # proposal: how each token is drawn; no truncation
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"constrained_smc num={self.num}: must be at least 1")
        if any(c.begun("") != 0 for c in self.constraints):
            raise BadField(f"constrained_smc constraints={self.constraints}: begun('') must be 0 for each, or the evidence counts from elsewhere")
        self.rounds()

    @property
    def guarantee(self) -> Guarantee:
        return weakest((self.rounds().guarantee, Guarantee.UNBIASED if self.pick is drawn else Guarantee.BIASED))

    def rounds(self) -> While:
        extend = ExtendStep(until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=True, certainty=True)
        return While(Resample(self.resampler, self.ess_below) >> Advance(ConstrainedStep(extend, self.constraints)), is_open, standings)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        particles = yield from (Spawn(self.num) >> self.rounds()).run(start(Judged(Prefix(prompt))), rng.fork(0))
        particles = kept(particles, torch.nonzero(check_weights(particles.log_w) > -math.inf)[:, 0])  # the dead break a constraint
        outcome = picked(self.pick, prompt, candidates_of(particles), weights=normalize(particles.log_w), rng=rng)
        return replace(outcome, diagnostics=outcome.diagnostics | history(particles))
