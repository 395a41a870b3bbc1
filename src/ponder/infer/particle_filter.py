"""Particle filter: grow N answers step by step and move compute from the weak prefixes to the strong ones.

Paper      Puri et al. 2025, arXiv:2502.01618; Zhao et al. 2024 (twisted SMC), arXiv:2404.17546
Equation   log w_t = log w_{t-1} + g(r_t) - [is_ratio] g(r_{t-1});  g = log r or log r/(1-r);  r_t = verifier(c, x_{1..t})
Shapes     prompt -> num candidates, the answer first
Guarantee  biased with pick=vote or argmax; unbiased with drawn, for q(x) exp(g(r(x))) (is_ratio) or q(x) prod_t exp(g(r_t))
Cost       about the tokens of num plain answers, one verdict per particle and step, num x steps short turns
Choose     when partial answers can be judged. With a verifier that only knows finished answers: best_of_n.
Differs    weights are carried when nothing is resampled; finished particles keep theirs and take part; is_ratio counts the
           final verdict once. The paper's own: is_ratio=False, ess_below=None, multinomial, pick=argmax
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Ask, Candidate, Judge, Outcome, Prefix, Prompt, Sampling, Turn, Verdict, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Batch, Particles
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Resampler, Verifier
from ponder.core.votes import is_whole, tally
from ponder.core.weights import normalize
from ponder.infer.ops import Advance, ExtendStep, Resample, Spawn, While, start

CLIP = 1e-7  # keeps a verdict of 0 or 1 from deciding alone


@dataclass(frozen=True)
class MeanProbability:
    """Verifier: geometric mean of the token probabilities, from the model itself. What there is without a reward model."""

    name: str = "mean_probability"

    def asks(self, prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[Ask, ...]:
        return ()

    def judge(self, prompt: Prompt, candidates: Sequence[Candidate], answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(min(1.0, math.exp(c.mean_log_p)), "probability") for c in candidates)


def log_prob(verdict: Verdict) -> float:
    """log r; a score, which has no unit, counts as a log factor."""
    value = verdict.value or 0.0
    return math.log(min(max(value, CLIP), 1.0)) if verdict.kind == "probability" else value


def log_odds(verdict: Verdict) -> float:
    """log r / (1 - r); a score counts as a logit."""
    value = verdict.value or 0.0
    if verdict.kind == "log_p":
        value = math.exp(min(value, 0.0))
    elif verdict.kind != "probability":
        return value
    r = min(max(value, CLIP), 1 - CLIP)
    return math.log(r) - math.log1p(-r)


@dataclass(frozen=True)
class Judged:
    """A prefix and the last opinion about it."""

    prefix: Prefix
    log_r: float = 0.0  # g of the last verdict; 0 before the first
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedStep:
    """Kernel on Batch[Judged]: one step of `extend`, then a verdict on what grew. An abstention leaves weight and opinion."""

    extend: ExtendStep
    verifier: Verifier
    potential: Callable[[Verdict], float]
    is_ratio: bool

    guarantee = Guarantee.UNBIASED

    def __call__(self, state: Batch[Judged], rng: Rng) -> Generator[Turn, Sequence[Answer], tuple[Batch[Judged], Tensor]]:
        grown, log_g = yield from self.extend(Batch(tuple(item.prefix for item in state)), rng)
        items = [replace(old, prefix=new) for old, new in zip(state, grown, strict=True)]
        new = [i for i, item in enumerate(state) if not item.prefix.is_final]
        if not new:
            return state, log_g
        asked = tuple(candidate(items[i].prefix) for i in new)
        (told,) = yield Turn((Judge(verifier=self.verifier, prompt=items[0].prefix.prompt, candidates=asked),))
        for i, verdict in zip(new, told.verdicts, strict=True):
            if verdict.value is not None:
                log_r = self.potential(verdict)
                log_g[i] += log_r - (items[i].log_r if self.is_ratio else 0.0)
                items[i] = replace(items[i], log_r=log_r, verdict=verdict)
        return Batch(tuple(items)), log_g


Pick = Callable[[Prompt, Sequence[Candidate], Tensor, Rng], int]  # candidates with weights [N] that sum to 1 -> index


def vote(prompt: Prompt, candidates: Sequence[Candidate], weights: Tensor, rng: Rng) -> int:
    """The heaviest member of the heaviest answer; without any answer, the heaviest candidate."""
    tallies = tally(candidates, weights.tolist(), prompt.answers)
    members = tallies[0].members if tallies else range(len(candidates))
    return max(members, key=lambda i: (is_whole(candidates[i]), float(weights[i])))


def argmax(prompt: Prompt, candidates: Sequence[Candidate], weights: Tensor, rng: Rng) -> int:
    """The candidate with the best last verdict among those of positive weight; among equals the heaviest."""
    live = [i for i in range(len(candidates)) if weights[i] > 0]
    return max(live, key=lambda i: (is_whole(candidates[i]), candidates[i].score or 0.0, float(weights[i])))


def drawn(prompt: Prompt, candidates: Sequence[Candidate], weights: Tensor, rng: Rng) -> int:
    """One candidate, in proportion to its weight."""
    return int(rng.categorical(weights.log()[None])[0])


@dataclass(frozen=True, kw_only=True)
class ParticleFilter:
    num: int  # particles
    resampler: Resampler  # systematic unless there is a reason
    verifier: Verifier = field(default_factory=MeanProbability)  # judges partial answers
    potential: Callable[[Verdict], float] = log_odds  # verdict -> log factor: log_odds or log_prob
    is_ratio: bool = True  # factors telescope to the final verdict's; False: every step's verdict counts in full
    ess_below: float | None = 0.5  # resample when the effective sample size is below this share of num; None: always
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q, so that the target is the model's own distribution whatever the temperature
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"particle_filter num={self.num}: must be at least 1")
        if not self.until and self.step_tokens is None:
            raise BadField("particle_filter without until and step_tokens has one step only; give one of them, or use best_of_n")
        self.rounds()

    @property
    def guarantee(self) -> Guarantee:
        return weakest((self.rounds().guarantee, Guarantee.UNBIASED if self.pick is drawn else Guarantee.BIASED))

    def rounds(self) -> While:
        extend = ExtendStep(until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=self.is_corrected)
        step = JudgedStep(extend=extend, verifier=self.verifier, potential=self.potential, is_ratio=self.is_ratio)
        return While(Resample(self.resampler, self.ess_below) >> Advance(step), is_open, standings)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        particles = yield from (Spawn(self.num) >> self.rounds()).run(start(Judged(Prefix(prompt))), rng.fork(0))
        candidates, weights = candidates_of(particles), normalize(particles.log_w)
        first = self.pick(prompt, candidates, weights, rng)
        order = sorted(range(len(candidates)), key=lambda i: (i == first, float(weights[i])), reverse=True)
        tallies = tally(candidates, weights.tolist(), prompt.answers)
        share = next((t.weight for t in tallies if first in t.members), None)
        diagnostics = {
            "log_evidence": particles.log_evidence,
            "weights": weights[order].tolist(),
            "ess": list(particles.ess),
            "num_resampled": len(particles.ancestors),
            "ancestors": [list(a) for a in particles.ancestors],
            "num_distinct": len({(c.tokens, c.text) for c in candidates}),
        }
        return Outcome(tuple(candidates[i] for i in order), share, diagnostics)


def is_open(particles: Particles) -> bool:
    """Whether a live particle is unfinished."""
    return any(not item.prefix.is_final and log_w > -math.inf for item, log_w in zip(particles.state, particles.log_w.tolist()))


def candidates_of(particles: Particles) -> tuple[Candidate, ...]:
    return tuple(candidate(item.prefix, score=item.log_r, verdicts=(item.verdict,) if item.verdict else ()) for item in particles.state)


def standings(particles: Particles) -> tuple[Candidate, ...]:
    """Candidates by weight; none before the first step."""
    order = torch.sort(particles.log_w, descending=True, stable=True).indices.tolist()
    candidates = candidates_of(particles)
    return tuple(candidates[i] for i in order if candidates[i].tokens or candidates[i].text)
