"""Parallel tempering over answers: chains that take the verifier less and less seriously, and exchange their answers.

Paper      Puri et al. 2025, arXiv:2502.01618, algorithm 3; Geyer 1991; Swendsen & Wang 1986, PRL 57
Equation   pi_k(x) ~ q(x) exp(b_k s(x)),  b_k = ladder^-k,  s = sum_t g_t;  x_k, x_k+1 change places with probability
           min(1, exp((b_k - b_k+1) (s(x_k+1) - s(x_k)))): q is the same in all chains and cancels
Shapes     prompt -> num candidates of every counted round of the coldest chain, the answer first
Guarantee  biased: each round leaves all pi_k unchanged and brings the coldest chain closer to pi_0
Cost       num_chains times that of particle_gibbs with as many sweeps; all chains share their turns
Choose     where particle_gibbs stays with one kind of answer (its num_moved is low): hot chains find others
Differs    chains move by conditional SMC, whose weights (not only its resampling) carry b_k; the paper ran no exchanges
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from ponder.core.asks import Prompt, Sampling, Verdict
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Particles, as_log_weights
from ponder.core.rng import Rng
from ponder.core.roles import Asking, Verifier
from ponder.core.weights import normalize
from ponder.infer.compose import showing, together
from ponder.infer.conditional import Sweep, Trail, drawn_trail, is_cut
from ponder.infer.ops import ExtendStep, JudgedStep, log_odds
from ponder.infer.picks import Pick, candidates_of, picked, standings, vote


@dataclass(frozen=True, kw_only=True)
class ParallelTempering:
    num: int = 3  # particles of one chain's sweep, the held one included
    num_chains: int = 3
    ladder: float = 2.0  # how much hotter each chain is than the one before
    num_rounds: int = 3  # sweeps of every chain; before each but the first, neighbours exchange
    burn_in: int = 0  # rounds that do not count
    verifier: Verifier  # judges partial answers
    potential: Callable[[Verdict], float] = log_odds  # verdict -> log factor: log_odds or log_prob
    twist: Literal["ratio", "full"] = "ratio"  # ratio: factors telescope to the final verdict's; full: every step's verdict counts
    until: tuple[str, ...] = ("\n\n",)  # ends of a step
    step_tokens: int | None = None  # most tokens of one step
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))  # how each token is drawn
    is_corrected: bool = False  # weigh by p / q, so that q is the model's own distribution whatever the temperature
    pick: Pick = vote  # which particle is the answer: vote, argmax or drawn

    guarantee: ClassVar[Guarantee] = Guarantee.BIASED

    def __post_init__(self) -> None:
        rules = (
            ("num", self.num, self.num >= 2, "at least 2: one is held to the last answer"),
            ("num_chains", self.num_chains, self.num_chains >= 1, "at least 1"),
            ("ladder", self.ladder, self.ladder > 1, "above 1"),
            ("num_rounds", self.num_rounds, self.num_rounds >= 1, "at least 1"),
            ("burn_in", self.burn_in, 0 <= self.burn_in < self.num_rounds, f"between 0 and num_rounds - 1 = {self.num_rounds - 1}"),
            ("twist", self.twist, self.twist in ("ratio", "full"), "ratio or full"),
            ("until", self.until, self.until or self.step_tokens is not None, "given, or else step_tokens: without both there is one step only"),
        )
        for name, value, ok, rule in rules:
            if not ok:
                raise BadField(f"parallel_tempering {name}={value}: must be {rule}")
        self.sweeps()

    def sweeps(self) -> tuple[Sweep, ...]:
        """One per chain, the coldest first."""
        extend = ExtendStep(
            until=self.until, max_tokens=self.step_tokens, sampling=self.sampling, is_corrected=self.is_corrected, certainty=True
        )  # fmt: skip
        step = JudgedStep(extend=extend, verifier=self.verifier, potential=self.potential, is_ratio=self.twist == "ratio")
        return tuple(Sweep(num=self.num, step=step, power=self.ladder**-k) for k in range(self.num_chains))

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        sweeps, sets, accepted = self.sweeps(), list[Particles](), list[bool]()
        chains: Sequence[Trail | None] = [None] * self.num_chains
        for i in range(self.num_rounds):
            here = rng.fork(i)
            chains, taken = exchanged(chains, [s.power for s in sweeps], i, rng) if i > 0 else (chains, [])
            best = standings(sets[-1]) if sets else ()
            round_ = together([s.run(prompt, x, here.fork(k)) for k, (s, x) in enumerate(zip(sweeps, chains, strict=True))])
            found = yield from showing(best, round_)
            is_over = any(map(is_cut, found))
            if is_over and sets:
                break
            sets.append(found[0])
            accepted.extend(taken)
            if is_over:
                break
            chains = [drawn_trail(particles, rng) for particles in found]
        counted = sets[self.burn_in :] or sets[-1:]
        candidates = tuple(c for particles in counted for c in candidates_of(particles))
        weights = torch.cat([normalize(particles.log_w) for particles in counted]) / len(counted)
        outcome = picked(self.pick, prompt, candidates, weights=weights, rng=rng)
        more = {"log_evidence": sets[0].log_evidence, "num_rounds": len(sets), "num_tried": len(accepted), "num_exchanged": sum(accepted)}
        return replace(outcome, diagnostics=outcome.diagnostics | more)


def exchanged(chains: Sequence[Trail], powers: Sequence[float], offset: int, rng: Rng) -> tuple[list[Trail], list[bool]]:
    """Neighbours (k, k + 1) for k of the parity of `offset` change places or do not; leaves the product of all pi_k unchanged."""
    pairs = [(k, k + 1) for k in range(offset % 2, len(chains) - 1, 2)]
    gaps = [(powers[a] - powers[b]) * (chains[b].score - chains[a].score) for a, b in pairs]
    chance = as_log_weights(gaps).clamp_max(0.0).exp()
    accepted = (rng.uniform([p[None] for p in chance]) < chance).tolist()
    after = list(chains)
    for (a, b), is_taken in zip(pairs, accepted):
        if is_taken:
            after[a], after[b] = after[b], after[a]
    return after, accepted
