"""Entropic particle filter: resample more evenly while the verifier's opinion is early, and after a look at the next step.

Paper      Giannone et al. 2025, arXiv:2510.05825; Pitt & Shephard 1999 (auxiliary particle filter), JASA 94
Equation   ancestors ~ V,  V ~ (w exp(g(r(y))))^(1/tau),  w' = w / (N V);  y one step drawn ahead, where there is a look-ahead
           ess: tau = max(1, N / ESS (1 - t)) while ESS < N / 2 and t < 1/2, else 1;  entropy: 1 / tau = H + (1 - H) t
Shapes     prompt -> num candidates, the answer first
Guarantee  biased with pick=vote or argmax; unbiased with drawn, for the same target as particle_filter, whatever tau and y
Cost       as particle_filter; a look-ahead adds a step and a verdict per particle to every resampling
Choose     where particle_filter loses its diversity to verdicts on the first steps (few distinct answers, a low ess)
Differs    what V adds to the weights is divided out again, so annealing and look-ahead cost no bias (the paper's weights become
           equal); t is the share of max_tokens that is written; H is the entropy of the weights / log N
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ponder.core.asks import Answer, Prefix, Prompt, Sampling, Turn, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.particles import Particles
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Kernel, Resampler, Verifier
from ponder.core.weights import ess, normalize
from ponder.infer.compose import Composable, Running, While
from ponder.infer.ops import CLIP, Advance, ExtendStep, Judged, JudgedStep, Spawn, log_odds, marked, start
from ponder.infer.picks import Pick, candidates_of, drawn, history, is_open, picked, standings, vote


@dataclass(frozen=True)
class AnnealedResample(Composable):
    """Op on Batch[Judged]: resamples by annealed weights, after a look ahead, and divides by them. The measure is kept."""

    resampler: Resampler
    ess_below: float | None
    anneal: Literal["ess", "entropy", "none"]
    look_ahead: Kernel | None  # a step that is judged and forgotten

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.UNBIASED if self.look_ahead is None else weakest((Guarantee.UNBIASED, self.look_ahead.guarantee))

    def run(self, particles: Particles, rng: Rng) -> Running:
        size = ess(particles.log_w)
        seen = marked(replace(particles, ess=(*particles.ess, size)), self.guarantee)
        is_fresh = all(not item.prefix.tokens for item in particles.state)  # type: ignore[attr-defined]
        if is_fresh or (self.ess_below is not None and size >= self.ess_below * len(particles)):
            return seen
        promise = yield from self.promise(particles, rng.fork(0))
        log_v = (particles.log_w + promise) / self.temperature(particles)
        ancestors = self.resampler(log_v, len(particles), rng)
        log_w = particles.log_w - normalize(log_v).log() - math.log(len(particles))
        return replace(
            seen, state=particles.state.select(ancestors), log_w=log_w[ancestors], ancestors=(*particles.ancestors, tuple(ancestors.tolist()))
        )

    def promise(self, particles: Particles, rng: Rng) -> Generator[Turn, Sequence[Answer], Tensor]:
        """[N]: what one step ahead would multiply the weights by, never zero: a look ahead may not kill."""
        if self.look_ahead is None:
            return torch.zeros_like(particles.log_w)
        ahead = yield from Advance(self.look_ahead).run(particles, rng)
        return torch.where(particles.log_w > -math.inf, ahead.log_w - particles.log_w, 0.0).clamp_min(math.log(CLIP))

    def temperature(self, particles: Particles) -> float:
        prefixes = [item.prefix for item in particles.state]  # type: ignore[attr-defined]
        progress = sum(len(p.tokens) / p.prompt.max_tokens for p in prefixes) / len(prefixes)
        num = len(particles)
        if self.anneal == "ess":
            size = ess(particles.log_w)
            return max(1.0, num / size * (1 - progress)) if size < num / 2 and progress < 0.5 else 1.0
        if self.anneal == "entropy" and num > 1:
            entropy = float(torch.special.entr(normalize(particles.log_w)).sum()) / math.log(num)
            return 1 / max(entropy + (1 - entropy) * progress, CLIP)
        return 1.0


@dataclass(frozen=True, kw_only=True)
class EntropicFilter:
    num: int  # particles
    resampler: Resampler  # systematic unless there is a reason
    verifier: Verifier  # judges partial answers
    potential: Callable[[Verdict], float] = log_odds  # verdict -> log factor: log_odds or log_prob
    twist: Literal["ratio", "full"] = "ratio"  # ratio: factors telescope to the final verdict's; full: every step's verdict counts
    anneal: Literal["ess", "entropy", "none"] = "ess"  # how the resampling's temperature is set
    is_looking: bool = False  # look one step ahead before resampling
    ess_below: float | None = 0.5  # resample when the effective sample size is below this share of num; None: always
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q, so that the target is the model's own distribution whatever the temperature
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    def __post_init__(self) -> None:
        rules = (
            ("num", self.num, self.num >= 1, "at least 1"),
            ("twist", self.twist, self.twist in ("ratio", "full"), "ratio or full"),
            ("anneal", self.anneal, self.anneal in ("ess", "entropy", "none"), "ess, entropy or none"),
            ("ess_below", self.ess_below, self.ess_below is None or 0 <= self.ess_below <= 1, "a share in [0, 1], or None"),
            ("until", self.until, self.until or self.step_tokens is not None, "given, or else step_tokens: without both there is one step only"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"entropic_filter {name}={value}: must be {rule}")
        self.rounds()

    @property
    def guarantee(self) -> Guarantee:
        return weakest((self.rounds().guarantee, Guarantee.UNBIASED if self.pick is drawn else Guarantee.BIASED))

    def rounds(self) -> While:
        extend = ExtendStep(
            until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=self.is_corrected, certainty=True
        )  # fmt: skip
        step = JudgedStep(extend=extend, verifier=self.verifier, potential=self.potential, is_ratio=self.twist == "ratio")
        resample = AnnealedResample(self.resampler, self.ess_below, self.anneal, step if self.is_looking else None)
        return While(resample >> Advance(step), is_open, standings)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        particles = yield from (Spawn(self.num) >> self.rounds()).run(start(Judged(Prefix(prompt))), rng.fork(0))
        outcome = picked(self.pick, prompt, candidates_of(particles), weights=normalize(particles.log_w), rng=rng)
        return replace(outcome, diagnostics=outcome.diagnostics | history(particles))
