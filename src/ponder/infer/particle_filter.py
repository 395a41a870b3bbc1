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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ponder.core.asks import Candidate, Outcome, Prefix, Prompt, Sampling, Verdict, candidate
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Particles
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Resampler, Verifier
from ponder.core.votes import is_whole, tally
from ponder.core.weights import normalize
from ponder.infer.compose import While
from ponder.infer.ops import Advance, ExtendStep, Judged, JudgedStep, MeanProbability, Resample, Spawn, log_odds, start

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
        extend = ExtendStep(
            until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=self.is_corrected, certainty=True
        )  # fmt: skip
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
