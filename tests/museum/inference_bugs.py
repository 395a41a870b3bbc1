"""Bugs that others shipped in inference code, each rebuilt small: the wrong piece, the right one, and the law that tells them apart."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch

from ponder.core.asks import Extend, Extension, Outcome, Prefix, Prompt, Turn, Verdict, candidate
from ponder.core.budget import Cost
from ponder.core.guarantee import Guarantee
from ponder.core.particles import Batch, Particles, as_log_weights
from ponder.core.votes import one_each, voted
from ponder.core.weights import inverse_cdf, log_mean_exp, normalize
from ponder.infer.beam import Beam
from ponder.infer.best_of_n import BestOfN
from ponder.infer.compose import PureOp, Repeat
from ponder.infer.ops import Advance, Draw, Resample, Reweight, Spawn, Thin, log_odds, start
from ponder.infer.particle_filter import ParticleFilter
from ponder.infer.picks import drawn
from ponder.infer.resample.multinomial import multinomial
from ponder.infer.resample.systematic import systematic
from ponder.testing import laws_op, laws_strategy
from ponder.testing.exact import require, returned
from ponder.testing.hmm import DEADLY, SMALL, Step
from ponder.testing.toy import ToyProcess, rendered, toy_lm
from ponder.testing.verifiers import Counting


@dataclass(frozen=True)
class Exhibit:
    name: str
    source: str  # thread where the bug was met, or the code that it was read in
    law: Callable[[object], object]
    wrong: object
    right: object


# ---- resamplers


def unclamped(log_w, num, rng):
    """Probes may pass the last weight that is not zero."""
    weights = normalize(log_w)
    cumulative = weights.cumsum(0)
    probes = (torch.arange(num) + rng.uniform([(num * cumulative) % 1])) / num
    return torch.searchsorted(cumulative * (1 - 1e-16), probes, right=True).clamp_max(len(log_w) - 1)


def first_always_stays(log_w, num, rng):
    """The first probe is 0 instead of the random offset."""
    weights = normalize(log_w)
    offset = rng.uniform([(num * weights.cumsum(0)) % 1])
    probes = (torch.arange(num) + offset) / num
    return inverse_cdf(weights, torch.cat([torch.zeros(1, dtype=torch.float64), probes[1:]]))


def rounded_counts(log_w, num, rng):
    """Deterministic copies by rounding, the rest from the heaviest."""
    copies = (num * normalize(log_w)).round().long()
    ancestors = torch.arange(len(log_w)).repeat_interleave(copies)[:num]
    heaviest = log_w.argmax().expand(num - len(ancestors))
    return torch.cat([ancestors, heaviest])


def all_dead_is_all_equal(log_w, num, rng):
    """Weights that are all zero are silently taken as equal."""
    return multinomial(torch.where(torch.isfinite(log_w).any(), log_w, 0.0), num, rng)


def global_state(log_w, num, rng):
    """Draws from the global generator."""
    return torch.multinomial(normalize(log_w), num, replacement=True)


def hidden_cuts(log_w, num, rng):
    """Tells the enumerator of fewer cuts than there are."""
    weights = normalize(log_w)
    return inverse_cdf(weights, (torch.arange(num) + rng.uniform([weights[:1] % 1])) / num)


# ---- ops


@dataclass(frozen=True)
class WrongResample(PureOp):
    """Resample with one step replaced."""

    finish: Callable[[Particles, torch.Tensor, Particles], Particles]  # (before, ancestors, right result) -> wrong result
    ess_below: float | None = None
    unresampled: Callable[[Particles], Particles] = lambda particles: particles

    guarantee = Guarantee.UNBIASED

    def apply(self, particles, rng):
        after = Resample(systematic, self.ess_below).apply(particles, rng)
        if len(after.ancestors) == len(particles.ancestors):
            return self.unresampled(after)
        return self.finish(particles, torch.tensor(after.ancestors[-1]), after)


def neighbours(before, ancestors, after):
    shifted = (ancestors + 1) % len(before)
    return replace(after, state=before.state.select(shifted))


def over_survivors(before, ancestors, after):
    return replace(after, log_z=before.log_z + log_mean_exp(before.log_w[torch.isfinite(before.log_w)]))


def state_left_behind(before, ancestors, after):
    return replace(after, state=before.state)


def weights_left_behind(before, ancestors, after):
    return replace(after, log_w=before.log_w, log_z=before.log_z)


def keep(before, ancestors, after):
    return after


def forgotten(particles):
    return replace(particles, log_w=torch.zeros_like(particles.log_w), log_z=particles.log_evidence)


@dataclass(frozen=True)
class UniformIncrement(PureOp):
    """Evidence grows by the mean of the new factors, whatever the weights were before them."""

    guarantee = Guarantee.UNBIASED

    def apply(self, particles, rng):
        log_g = SMALL.log_potential(particles.state)
        after = Resample(systematic, 0.9).apply(particles.reweighted(log_g), rng)
        evidence = particles.log_evidence + log_mean_exp(log_g)
        return replace(after, log_z=after.log_z + evidence - after.log_evidence)


def smc(resample, hmm=SMALL, sign=1.0, last=None):
    """The posterior of a hidden Markov model by SMC with pieces put in."""
    step = Advance(Step(hmm)) >> Reweight(lambda state: sign * hmm.log_potential(state))
    op = Spawn(2) >> Repeat(resample >> step, 3)
    return op if last is None else op >> last


def law_smc_is_exact(op, hmm=SMALL):
    laws_op.law_expected_measure(lambda rng: returned(op.run(start(()), rng)), hmm.posterior())


def law_deadly_smc_is_exact(op):
    law_smc_is_exact(op, DEADLY)


@dataclass(frozen=True)
class UnweightedDraw(PureOp):
    """Returns a particle as if all were equally likely."""

    guarantee = Guarantee.UNBIASED

    def apply(self, particles, rng):
        return Draw().apply(replace(particles, log_w=torch.zeros_like(particles.log_w), log_z=particles.log_evidence), rng)


@dataclass(frozen=True)
class RecordsNeighbours(PureOp):
    """Does the right thing and writes down the wrong parents."""

    guarantee = Guarantee.UNBIASED

    def apply(self, particles, rng):
        after = Resample(multinomial, None).apply(particles, rng)
        return replace(after, ancestors=(*particles.ancestors, tuple(a - 1 for a in after.ancestors[-1])))


@dataclass(frozen=True)
class Overwriting(PureOp):
    """Sets the weight to the newest factor instead of multiplying by it."""

    def apply(self, particles, rng):
        return replace(particles, log_w=SMALL.log_potential(particles.state))


@dataclass(frozen=True)
class DropsQuietly(PureOp):
    """A hard constraint that averages over the particles that are left."""

    def apply(self, particles, rng):
        return replace(particles, state=Batch(particles.state.items[:1]), log_w=particles.log_w[:1])


@dataclass(frozen=True)
class ThinsWithoutLifting(PureOp):
    """Drops light particles at random and leaves the weights of those that stay."""

    guarantee = Guarantee.UNBIASED

    def apply(self, particles, rng):
        after = Thin(0.9).apply(particles, rng)
        log_w = dict(zip(particles.state.items, particles.log_w.tolist()))
        return replace(after, log_w=as_log_weights([log_w[item] for item in after.state]))


@dataclass(frozen=True)
class UnacceptedMove:
    """Moves to a proposal without asking whether the target allows it."""

    guarantee = Guarantee.UNBIASED

    def __call__(self, state, rng):
        yield from ()
        drawn_ids = rng.categorical(torch.zeros(len(state), 2, dtype=torch.float64)).tolist()
        return Batch(tuple((*path[:-1], x) for path, x in zip(state, drawn_ids))), torch.zeros(len(state), dtype=torch.float64)


@dataclass(frozen=True)
class InPlaceStep:
    """Grows the lists that it was given: forks share them."""

    guarantee = Guarantee.EXACT

    def __call__(self, state, rng):
        yield from ()
        for path in state:
            path.append(int(rng.categorical(torch.zeros(1, 2, dtype=torch.float64))[0]))
        return state, torch.zeros(len(state), dtype=torch.float64)


@dataclass(frozen=True)
class CopyingStep:
    guarantee = Guarantee.EXACT

    def __call__(self, state, rng):
        yield from ()
        grown = tuple([*path, int(rng.categorical(torch.zeros(1, 2, dtype=torch.float64))[0])] for path in state)
        return Batch(grown), torch.zeros(len(state), dtype=torch.float64)


def law_forks_do_not_share(kernel):
    paths = Particles(Batch(([0], [1])), torch.zeros(2, dtype=torch.float64))
    laws_op.law_leaves_its_input(Advance(kernel), paths)


@dataclass(frozen=True)
class Cached:
    """A state with next-token log-probabilities computed ahead."""

    tokens: tuple[int, ...]
    log_p: torch.Tensor
    moves_cache: bool

    def __len__(self):
        return len(self.tokens)

    def select(self, indices):
        kept = self.log_p[indices] if self.moves_cache else self.log_p[: len(indices)].repeat(len(indices), 1)[: len(indices)]
        return Cached(tuple(self.tokens[i] for i in indices.tolist()), kept, self.moves_cache)


def law_cache_moves_along(moves_cache):
    log_p = torch.log(torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]]))
    view = lambda state: [(t, tuple(row)) for t, row in zip(state.tokens, state.log_p.tolist())]
    laws_op.law_select_gathers(Cached((0, 1, 2), log_p, moves_cache), view)


# ---- strategies


@dataclass(frozen=True, kw_only=True)
class ForgetsItsResampler(ParticleFilter):
    """Takes a resampler and always uses multinomial."""

    def rounds(self):
        return ParticleFilter(num=self.num, resampler=multinomial, step_tokens=self.step_tokens, ess_below=self.ess_below).rounds()


def law_resampler_is_forwarded(kind):
    laws_strategy.law_uses_its_resampler(lambda spy: kind(num=3, resampler=spy, step_tokens=1, ess_below=None), systematic)


@dataclass(frozen=True, kw_only=True)
class OneSeed:
    """Every sample of a question comes from the same cache entry."""

    num: int

    guarantee = Guarantee.EXACT

    def run(self, prompt, rng):
        answers = yield Turn(tuple(Extend(prefix=Prefix(prompt), seed=rng.seed(0)) for _ in range(self.num)))
        return Outcome(tuple(candidate(a.prefix) for a in answers))


@dataclass(frozen=True, kw_only=True)
class PaddedBeam:
    """Fills up with copies until there are `width` candidates."""

    width: int

    guarantee = Guarantee.BIASED

    def run(self, prompt, rng):
        outcome = yield from Beam(width=self.width).run(prompt, rng)
        return replace(outcome, candidates=(outcome.candidates * self.width)[: self.width + len(outcome.candidates)])


@dataclass(frozen=True, kw_only=True)
class FilterOfNeighbours(ParticleFilter):
    """Divides by the previous verdict of another particle: the one that stood in this place before resampling."""

    def rounds(self):
        inner = super().rounds()
        _, advance = inner.op.ops
        return replace(inner, op=WrongResample(stale_verdicts, 0.95) >> advance)


def stale_verdicts(before, ancestors, after):
    stale = tuple(replace(new, log_r=old.log_r) for old, new in zip(before.state, after.state))
    return replace(after, state=Batch(stale))


def law_filter_is_unbiased(kind):
    strategy = kind(num=2, resampler=systematic, until=("a",), ess_below=0.95, pick=drawn)
    weight = lambda prefix: log_odds(Verdict(math.exp(prefix.log_p / len(prefix.tokens)), "probability"))
    laws_strategy.law_weights_are_proper(strategy, weight, strategy.sampling)


@dataclass(frozen=True, kw_only=True)
class KeepsAsking:
    """Draws until the verifier is satisfied, budget or not."""

    guarantee = Guarantee.BIASED

    def run(self, prompt, rng):
        best = ()
        for i in range(200):
            (answer,) = yield Turn((Extend(prefix=Prefix(prompt), seed=rng.seed(i)),), best)
            best = (candidate(answer.prefix),)
            if "bba" in answer.prefix.text:
                break
        return Outcome(best)


@dataclass(frozen=True, kw_only=True)
class AbstentionIsZero(BestOfN):
    """A verifier without an opinion is taken to say 0, which beats every negative score."""

    def run(self, prompt, rng):
        outcome = yield from super().run(prompt, rng)
        return replace(outcome, candidates=tuple(sorted(outcome.candidates, key=lambda c: c.score or 0.0, reverse=True)))


@dataclass(frozen=True)
class Grudging(Counting):
    """Negative scores."""

    def verdict(self, text):
        verdict = super().verdict(text)
        return verdict if verdict.value is None else Verdict(verdict.value - 100.0)


def law_verdicts_beat_abstentions(kind):
    for key in range(10):
        scores = [c.score for c in laws_strategy.played(kind(num=6, verifier=Grudging("a", "b")), key=key).result.candidates]
        require(scores == sorted(scores, key=lambda s: -math.inf if s is None else s, reverse=True), f"ranked {scores}")


# ---- votes and estimates


class Numbers:
    """Reads the last word when it is a number."""

    def read(self, text):
        word = (text.split() or [""])[-1]
        return word if word.isdigit() else None

    def same(self, a, b):
        return int(a) == int(b)


def by_string_similarity(prompt, candidates):
    """Groups whole texts that are at least 80 % alike."""
    groups = []
    for c in candidates:
        home = next((g for g in groups if SequenceMatcher(None, g[0].text, c.text).ratio() >= 0.8), None)
        (groups.append([c]) if home is None else home.append(c))
    return max(groups, key=len)[0]


def by_meaning(prompt, candidates):
    return voted(candidates, one_each(candidates), prompt).candidates[0]


def law_meaning_decides(vote):
    texts = ("therefore the answer is 12", "therefore the answer is 13", "therefore the answer is 14", "it must be 7", "I count 7")
    laws_strategy.law_answers_by_meaning(vote, Prompt(messages=(("user", "?"),), answers=Numbers()), texts, "7")


def no_answer_is_an_answer(prompt, candidates):
    """Texts without an answer vote for None."""
    (answer, _), *_ = Counter(c.answer for c in candidates).most_common(1)
    return next(c for c in candidates if c.answer == answer)


def law_the_silent_do_not_vote(vote):
    texts = ("no idea", "who knows", "hard to say", "it is 4", "it is 5", "so 4")
    laws_strategy.law_answers_by_meaning(vote, Prompt(messages=(("user", "?"),), answers=Numbers()), texts, "4")


def every_sample_counts(candidates):
    """Adds a path's probability as often as it was sampled."""
    return [math.exp(c.log_p) for c in candidates]


def law_copies_add_nothing(weigh):
    paths = [candidate(p) for p in laws_strategy.LM.completions(laws_strategy.PROMPT)]
    once = voted(paths, weigh(paths), laws_strategy.PROMPT).diagnostics["shares"]
    again = voted(paths + paths[:3] * 5, weigh(paths + paths[:3] * 5), laws_strategy.PROMPT).diagnostics["shares"]
    worst = max(abs(once[a] - again[a]) for a in once)
    require(worst < 1e-12, f"sampling three paths again moved an answer's share by {worst:.3f}")


def naive_pass_at_k(num, num_correct, k):
    return 1 - (1 - num_correct / num) ** k


# ---- processes


class LimitOfTheStep(ToyProcess):
    """Counts the answer's tokens from the step's own beginning, so that max_tokens never binds."""

    def add(self, ask, max_tokens=None):
        ticket = super().add(ask, max_tokens)
        job = self.jobs[ticket]
        if isinstance(ask, Extend) and ask.max_tokens:
            long = replace(ask.prefix.prompt, max_tokens=ask.prefix.prompt.max_tokens + len(ask.prefix.tokens))
            job.prefix = replace(job.prefix, prompt=long)
        return ticket


class FreeCancel(ToyProcess):
    """Tokens of cancelled requests are on the house."""

    def cancel(self, ticket):
        return replace(super().cancel(ticket), cost=Cost())


class StopStays(ToyProcess):
    """The stop string ends the answer and stays in it."""

    def step(self):
        done = []
        for ticket, answer in super().step():
            if isinstance(answer, Extension) and answer.finish == "stop" and answer.prefix.tokens[-1] != self.lm.end:
                answer = replace(answer, prefix=replace(answer.prefix, text="".join(self.lm.alphabet[t] for t in answer.prefix.tokens)))
            done.append((ticket, answer))
        return done


class ShowsAll(ToyProcess):
    """Shows of an answer under way all that there is, the beginning of a stop string too."""

    def partial(self, ticket):
        job = self.jobs[ticket]
        return Extension(job.prefix, "limit", job.cost)


class DrawsInTurn(ToyProcess):
    """One stream of noise for the whole batch, so that an answer depends on its neighbours."""

    def _draw(self, ask, position, log_q):
        self.num_drawn = getattr(self, "num_drawn", 0) + 1
        return super()._draw(replace(ask, seed=0), self.num_drawn, log_q)


class ReusedIsComputed(ToyProcess):
    """Counts only what it computed and calls that the prompt."""

    def _pay(self, job, cost):
        super()._pay(job, replace(cost, reused_tokens=0))


def on_toy(law):
    lm = toy_lm("abc", seed=3)
    prompt = Prompt(messages=(("raw", "ab"),), max_tokens=8)
    assert rendered(prompt) == "ab"
    return lambda kind: law(lambda: kind(lm), prompt, 0.0)


TWO = Particles(Batch(("a", "b")), as_log_weights([0.3, -0.9]), log_z=0.4)
RESAMPLE = Resample(systematic, 0.9)
ALWAYS = Resample(systematic, None)
