"""Particle filter: grow N answers step by step and move compute from the weak prefixes to the strong ones.

Paper      Puri et al. 2025, arXiv:2502.01618; Zhao et al. 2024 (twisted SMC), arXiv:2404.17546
Equation   log w_t = log w_{t-1} + g(r_t) - [ratio] g(r_{t-1});  g = log r or log r/(1-r);  r_t = verifier(c, x_{1..t})
Shapes     prompt -> num candidates, the answer first
Guarantee  biased with pick=vote or argmax; unbiased with drawn, for q(x) exp(g(r(x))) (ratio) or q(x) prod_t exp(g(r_t)) (full)
Cost       about the tokens of num plain answers, one verdict per particle and step, num x steps short turns
Choose     when partial answers can be judged. With a verifier that only knows finished answers: best_of_n.
Differs    weights are carried when nothing is resampled; finished particles keep theirs and take part; twist=ratio counts
           the final verdict once. The paper's own: twist=full, ess_below=None, multinomial, pick=argmax
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from ponder.core.asks import Prefix, Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee, weakest
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Resampler, Verifier
from ponder.core.weights import normalize
from ponder.infer.compose import While
from ponder.infer.ops import Advance, ExtendStep, Judged, JudgedStep, MeanProbability, Resample, Spawn, log_odds, start
from ponder.infer.picks import Pick, candidates_of, drawn, history, is_open, picked, standings, vote


@dataclass(frozen=True, kw_only=True)
class ParticleFilter:
    num: int  # particles
    resampler: Resampler  # systematic unless there is a reason
    verifier: Verifier = field(default_factory=MeanProbability)  # judges partial answers
    potential: Callable[[Verdict], float] = log_odds  # verdict -> log factor: log_odds or log_prob
    twist: Literal["ratio", "full"] = "ratio"  # ratio: factors telescope to the final verdict's; full: every step's verdict counts
    ess_below: float | None = 0.5  # resample when the effective sample size is below this share of num; None: always
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q, so that the target is the model's own distribution whatever the temperature
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    def __post_init__(self) -> None:
        if self.num < 1:
            raise BadField(f"particle_filter num={self.num}: must be at least 1")
        if self.twist not in ("ratio", "full"):
            raise BadField(f"particle_filter twist={self.twist!r}: must be ratio or full")
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
        step = JudgedStep(extend=extend, verifier=self.verifier, potential=self.potential, is_ratio=self.twist == "ratio")
        return While(Resample(self.resampler, self.ess_below) >> Advance(step), is_open, standings)

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        particles = yield from (Spawn(self.num) >> self.rounds()).run(start(Judged(Prefix(prompt))), rng.fork(0))
        outcome = picked(self.pick, prompt, candidates_of(particles), weights=normalize(particles.log_w), rng=rng)
        return replace(outcome, diagnostics=outcome.diagnostics | history(particles))
