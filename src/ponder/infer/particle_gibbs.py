"""Particle Gibbs: run the particle filter again and again, each time with the last answer among the particles.

Paper      Puri et al. 2025, arXiv:2502.01618, algorithm 2; Andrieu, Doucet & Holenstein 2010, JRSS B 72;
           Lindsten, Jordan & Schon 2014, arXiv:1401.0604 (is_rewired)
Equation   x' ~ sweep(x): SMC of num particles with particle 0 held to x;  pi(x) ~ q(x) prod_t exp(g_t(x)) is unchanged
Shapes     prompt -> num candidates of every sweep that counts, the answer first
Guarantee  biased: the first sweep is a particle filter; each further one brings the law of x closer to pi
Cost       num + (num_sweeps - 1) (num - 1) plain answers, one verdict per free particle and step
Choose     where one filter with all the particles would lose its diversity, or pi itself is wanted: more sweeps always help
Differs    the reference is weighed with its verdict of the same step, not its final one, and keeps it when it has ended; all
           sweeps after burn_in are pooled, not only the last. The paper's own: twist=full, burn_in=num_sweeps-1, pick=argmax
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from ponder.core.asks import Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Particles
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.weights import normalize
from ponder.infer.compose import showing
from ponder.infer.conditional import Sweep, Trail, drawn_trail, is_cut
from ponder.infer.ops import ExtendStep, JudgedStep, log_odds
from ponder.infer.picks import Pick, candidates_of, history, picked, standings, vote


@dataclass(frozen=True, kw_only=True)
class ParticleGibbs:
    num: int = 4  # particles of a sweep, the held one included
    num_sweeps: int = 3  # the first is a particle filter
    burn_in: int = 0  # sweeps that do not count
    verifier: Verifier  # judges partial answers
    potential: Callable[[Verdict], float] = log_odds  # verdict -> log factor: log_odds or log_prob
    twist: Literal["ratio", "full"] = "ratio"  # ratio: factors telescope to the final verdict's; full: every step's verdict counts
    ess_below: float | None = None  # resample when the effective sample size is below this share of num; None: always
    is_rewired: bool = False  # draw the past of the last answer anew at every step (ancestor sampling); costs its rest once per particle
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q, so that q is the model's own distribution whatever the temperature
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        rules = (
            ("num", self.num, self.num >= 2, "at least 2: one is held to the last answer"),
            ("num_sweeps", self.num_sweeps, self.num_sweeps >= 1, "at least 1"),
            ("burn_in", self.burn_in, 0 <= self.burn_in < self.num_sweeps, f"between 0 and num_sweeps - 1 = {self.num_sweeps - 1}"),
            ("twist", self.twist, self.twist in ("ratio", "full"), "ratio or full"),
            ("until", self.until, self.until or self.step_tokens is not None, "given, or else step_tokens: without both there is one step only"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"particle_gibbs {name}={value}: must be {rule}")
        self.sweep()

    def sweep(self) -> Sweep:
        extend = ExtendStep(
            until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=self.is_corrected, certainty=True
        )  # fmt: skip
        step = JudgedStep(extend=extend, verifier=self.verifier, potential=self.potential, is_ratio=self.twist == "ratio")
        return Sweep(num=self.num, step=step, ess_below=self.ess_below, is_rewired=self.is_rewired)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        sweep, sets, chain = self.sweep(), list[Particles](), list[Trail]()
        for i in range(self.num_sweeps):
            best = standings(sets[-1]) if sets else ()
            particles = yield from showing(best, sweep.run(prompt, chain[-1] if chain else None, rng.fork(i)))
            if is_cut(particles) and sets:
                break
            sets.append(particles)
            if is_cut(particles):
                break
            chain.append(drawn_trail(particles, rng))
        counted = sets[self.burn_in :] or sets[-1:]
        candidates = tuple(c for particles in counted for c in candidates_of(particles))
        weights = torch.cat([normalize(particles.log_w) for particles in counted]) / len(counted)
        outcome = picked(self.pick, prompt, candidates, weights=weights, rng=rng)
        num_moved = sum(old != new for old, new in itertools.pairwise(chain))
        more = history(sets[0]) | {"num_sweeps": len(sets), "num_moved": num_moved}
        return replace(outcome, diagnostics=outcome.diagnostics | more)
