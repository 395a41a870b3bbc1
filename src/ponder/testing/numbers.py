"""A process over numbers instead of words: state-space models and denoisers that answer the same asks as a language model.

One token is one number: the 64 bits of a float. So a prefix stays a value (a trace keeps it, another process goes on from it),
and no strategy needs to know. A state is `size` numbers; in the text it is a line, so until=("\\n",) is a step of one state.
log_p and log_q are log-densities; the log-density of a number that is certain (a deterministic step) counts as 0.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

from ponder.core.asks import Answer, Expand, Extend, Prefix, Read, Sampling, Score
from ponder.core.errors import BadField
from ponder.core.noise import drifted
from ponder.core.rng import hash_seed
from ponder.testing.toy import StepProcess
from ponder.testing.toy_jobs import Job

NUM_HALVINGS = 90


def token_of(number: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def numbers_of(tokens: Sequence[int]) -> tuple[float, ...]:
    return struct.unpack(f"<{len(tokens)}d", struct.pack(f"<{len(tokens)}Q", *tokens))


@dataclass(frozen=True)
class Bells:
    """The distribution of one number: a mixture of Gaussians, or with deviation 0 a single certain number."""

    parts: tuple[tuple[float, float, float], ...]  # (share, mean, deviation); shares sum to 1

    @property
    def is_certain(self) -> bool:
        return all(deviation == 0 for _, _, deviation in self.parts)

    def log_p(self, x: float) -> float:
        """Log-density, by its largest term so that far tails stay finite."""
        if self.is_certain:
            return 0.0
        terms = [math.log(w) - 0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi)) for w, m, s in self.parts if w > 0]
        top = max(terms)
        return top + math.log(math.fsum(math.exp(t - top) for t in terms))

    def below(self, x: float) -> float:
        return math.fsum(w * 0.5 * math.erfc((m - x) / (s * math.sqrt(2))) for w, m, s in self.parts)

    def at(self, probe: float) -> float:
        """The number below which `probe` of the mass lies."""
        if self.is_certain:
            return self.parts[0][1]
        z = NormalDist().inv_cdf(min(max(probe, 2.0**-54), 1 - 2.0**-53))
        ends = [m + s * z for w, m, s in self.parts if w > 0]
        low, high = min(ends), max(ends)  # each part's own number encloses the mixture's
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if self.below(middle) < probe else (low, middle)
        return (low + high) / 2

    def tempered(self, temperature: float) -> "Bells":
        """Every part as p^(1/temperature) would be; at 0 the largest part's mean, for certain."""
        if temperature == 0:
            return Bells(((1.0, max(self.parts)[1], 0.0),))
        return Bells(tuple((w, m, s * math.sqrt(temperature)) for w, m, s in self.parts))


class NumberModel(Protocol):
    """States of `size` numbers, `num_states` of them in a whole answer."""

    @property
    def size(self) -> int: ...

    @property
    def num_states(self) -> int: ...

    def law(self, numbers: tuple[float, ...]) -> Bells:
        """The next number's distribution under the model, after all numbers so far."""
        ...

    def proposal(self, numbers: tuple[float, ...]) -> Bells:
        """What it is drawn from; the model's law unless the model knows better."""
        ...


class NumberProcess(StepProcess):
    """Role Process over a NumberModel. Expand and Score name words, and there are none: refused. So are fields of Sampling but temperature."""

    def __init__(self, model: NumberModel) -> None:
        super().__init__(f"numbers-{hash_seed(repr(model)):016x}", context_len=4096)
        self.model = model

    def _check(self, ask: Extend | Expand | Score | Read) -> None:
        if not isinstance(ask, Extend):
            self._told(None, ask)
        elif replace(ask.sampling, temperature=1.0) != Sampling() or ask.prefix.prompt.form or ask.logprobs is not None or ask.probes:
            raise BadField(f"a process over numbers knows temperature alone, no form, no logprobs and no probes; got {ask.sampling}")

    def _told(self, job: Job | None, ask: Expand | Score | Read) -> Answer:
        raise BadField(f"{type(ask).__name__} names next tokens or states, which a process over numbers has not; use Extend")

    def _drawn(self, job: Job, ask: Extend) -> Prefix:
        numbers = numbers_of(job.prefix.tokens)
        proposal, at = self.model.proposal(numbers), len(numbers)
        if ask.sampling.temperature != 1:
            proposal = proposal.tempered(ask.sampling.temperature)
        drawn = drifted(lambda seed: hash_seed("toy", seed, at) / 2**63, ask.seed, ask.drift)
        x = numbers_of(ask.forced[at : at + 1])[0] if at < len(ask.forced) else proposal.at(drawn)
        return self.grown(job.prefix, x, self.model.law(numbers).log_p(x), proposal.log_p(x))

    def grown(self, prefix: Prefix, x: float, log_p: float, log_q: float) -> Prefix:
        """`prefix` with one more number; final with the last one of the last state, at a stop string or at its length."""
        tokens, prompt = (*prefix.tokens, token_of(x)), prefix.prompt
        is_end = len(tokens) == self.model.size * self.model.num_states
        text = prefix.text + f"{x:.6g}" + ("" if is_end else "\n" if len(tokens) % self.model.size == 0 else " ")
        cut = min((i for i in (text.find(s) for s in prompt.stop) if i >= 0), default=None)
        finish = "stop" if is_end or cut is not None else "length" if len(tokens) >= prompt.max_tokens else None
        return replace(prefix, tokens=tokens, text=text[:cut], log_p=prefix.log_p + log_p, log_q=prefix.log_q + log_q, finish=finish)


def states_of(model: NumberModel, tokens: Sequence[int]) -> list[tuple[float, ...]]:
    """The whole states among those numbers, in order."""
    numbers, size = numbers_of(tokens), model.size
    return [numbers[i : i + size] for i in range(0, len(numbers) - size + 1, size)]
