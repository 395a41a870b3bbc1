"""From weighted, judged prefixes to an answer: who is unfinished, who stands first, and which particle is picked."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ponder.core.asks import Candidate, Outcome, Prompt, candidate
from ponder.core.particles import Particles
from ponder.core.rng import Rng
from ponder.core.votes import is_whole, tally

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


def picked(pick: Pick, prompt: Prompt, candidates: Sequence[Candidate], *, weights: Tensor, rng: Rng) -> Outcome:
    """The picked candidate first, the others by weight; confidence is the weight of its answer."""
    first = pick(prompt, candidates, weights, rng)
    order = sorted(range(len(candidates)), key=lambda i: (i == first, float(weights[i])), reverse=True)
    share = next((t.weight for t in tally(candidates, weights.tolist(), prompt.answers) if first in t.members), None)
    diagnostics: dict[str, object] = {
        "weights": weights[order].tolist(),
        "num_distinct": len({(c.tokens, c.text) for c in candidates}),
    }
    return Outcome(tuple(candidates[i] for i in order), share, diagnostics)


def history(particles: Particles) -> dict[str, object]:
    """Diagnostics: the evidence, and what was resampled on the way."""
    return {
        "log_evidence": particles.log_evidence,
        "ess": list(particles.ess),
        "num_resampled": len(particles.ancestors),
        "ancestors": [list(a) for a in particles.ancestors],
    }


def is_open(particles: Particles) -> bool:
    """Whether a live particle is unfinished."""
    return any(not item.prefix.is_final and log_w > -math.inf for item, log_w in zip(particles.state, particles.log_w.tolist()))  # type: ignore[call-overload]


def candidates_of(particles: Particles) -> tuple[Candidate, ...]:
    items = list(particles.state)  # type: ignore[call-overload]
    return tuple(candidate(x.prefix, score=x.log_r, verdicts=(x.verdict,) if x.verdict else ()) for x in items)


def standings(particles: Particles) -> tuple[Candidate, ...]:
    """Candidates by weight, the dead left out; none before the first step."""
    order = torch.sort(particles.log_w, descending=True, stable=True).indices.tolist()
    candidates = candidates_of(particles)
    return tuple(candidates[i] for i in order if particles.log_w[i] > -math.inf and (candidates[i].tokens or candidates[i].text))
