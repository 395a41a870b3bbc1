"""Answers grouped by meaning, and what a group weighs. All weights are finite and at least 0."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ponder.core.asks import AnswerReader, Candidate, Outcome, Prompt

Weigh = Callable[[Sequence[Candidate]], list[float]]  # candidates -> one weight each


@dataclass(frozen=True)
class Tally:
    """One answer and its voters."""

    answer: str  # as the first of its voters gave it
    members: tuple[int, ...]  # indices of the candidates that gave it
    weight: float  # sum over members


def is_whole(candidate: Candidate) -> bool:
    """Whether it was not cut off by the budget."""
    return candidate.finish != "budget"


def standing(candidate: Candidate) -> tuple[bool, bool, float]:
    """Sort key that needs no verifier: whole before cut off, some text before none, then mean log-probability."""
    return is_whole(candidate), bool(candidate.text), candidate.mean_log_p


def best_first(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By `standing`; equal ones keep their order."""
    return tuple(sorted(candidates, key=standing, reverse=True))


def voters(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Indices of those whose text holds an answer; cut-off ones only when no other has one."""
    answered = [i for i, c in enumerate(candidates) if c.answer is not None]
    return tuple(i for i in answered if is_whole(candidates[i])) or tuple(answered)


def grouped(candidates: Sequence[Candidate], reader: AnswerReader) -> list[list[int]]:
    """Indices of `voters` with equal answers, in order of their first member. Equal strings are compared once: it may be slow."""
    groups: list[list[int]] = []
    home: dict[str, list[int]] = {}
    for i in voters(candidates):
        answer = candidates[i].answer or ""
        if answer not in home:
            found = next((g for g in groups if reader.same(candidates[g[0]].answer or "", answer)), None)
            if found is None:
                groups.append(found := [])
            home[answer] = found
        home[answer].append(i)
    return groups


def labels(candidates: Sequence[Candidate], reader: AnswerReader) -> list[int | None]:
    """For each candidate the number of its group, 0 for the first to appear; None for one that does not vote."""
    home = {i: number for number, members in enumerate(grouped(candidates, reader)) for i in members}
    return [home.get(i) for i in range(len(candidates))]


def leading_two(labels: Sequence[int | None]) -> tuple[int, int]:
    """Votes of the most frequent label and of the next one; None does not vote."""
    first, second, *_ = [n for _, n in Counter(x for x in labels if x is not None).most_common(2)] + [0, 0]
    return first, second


def tally(candidates: Sequence[Candidate], weights: Sequence[float], reader: AnswerReader) -> tuple[Tally, ...]:
    """Groups of equal answers among `voters`, heaviest first; equal ones by their best member's mean log-probability."""
    groups = grouped(candidates, reader)
    tallies = [Tally(candidates[g[0]].answer or "", tuple(g), math.fsum(weights[i] for i in g)) for g in groups]
    return tuple(sorted(tallies, key=lambda t: (t.weight, max(candidates[i].mean_log_p for i in t.members)), reverse=True))


def num_tied(tallies: Sequence[Tally]) -> int:
    """Number of answers that share the largest weight (to 1e-12 of it); 0 without any answer."""
    return sum(t.weight >= tallies[0].weight * (1 - 1e-12) for t in tallies)


def voted(candidates: Sequence[Candidate], weights: Sequence[float], prompt: Prompt) -> Outcome:
    """Candidates by the weight of their group, each group's best first; those without a vote last."""
    tallies = tally(candidates, weights, prompt.answers)
    total = sum(t.weight for t in tallies)
    share = [t.weight / total if total > 0 else 0.0 for t in tallies]
    score = {i: s for t, s in zip(tallies, share) for i in t.members}
    ranked = [i for t in tallies for i in sorted(t.members, key=lambda i: (weights[i], standing(candidates[i])), reverse=True)]
    silent = best_first([c for i, c in enumerate(candidates) if i not in score])
    diagnostics = {
        "shares": {t.answer: s for t, s in zip(tallies, share)},
        "num_voters": len(voters(candidates)),
        "num_abstained": len(silent),
        "num_tied": num_tied(tallies),
    }
    return Outcome((*(replace(candidates[i], score=score[i]) for i in ranked), *silent), share[0] if total > 0 else None, diagnostics)


def one_each(candidates: Sequence[Candidate]) -> list[float]:
    """Weight 1 for every candidate: plain majority."""
    return [1.0] * len(candidates)


def by_path_probability(candidates: Sequence[Candidate]) -> list[float]:
    """Probability of each distinct path, relative to the likeliest; a path sampled again adds nothing."""
    top = max((c.log_p for c in candidates), default=0.0)
    seen: set[object] = set()
    weights = []
    for c in candidates:
        key = (c.tokens, c.text, c.finish)
        weights.append(0.0 if key in seen else math.exp(c.log_p - top) if c.log_p > -math.inf else 0.0)
        seen.add(key)
    return weights


by_path_probability.needs = ("log_p",)  # type: ignore[attr-defined]  # core.needs


def by_verdict(candidates: Sequence[Candidate]) -> list[float]:
    """Weight from the first verdict; abstentions weigh 0.

    A probability counts as it is, a log_p relative to the largest, and a score, which has no unit, by its rank alone:
    1/n for the worst of n up to 1 for the best, equal ones sharing their mean rank (Borda, arXiv:2502.18581).
    """
    verdicts = [c.verdicts[0] if c.verdicts else None for c in candidates]
    values = [v.value for v in verdicts if v is not None and v.value is not None]
    kind = next((v.kind for v in verdicts if v is not None and v.value is not None), "score")
    if kind == "probability":
        weigh: Callable[[float], float] = lambda x: x
    elif kind == "log_p":
        weigh = lambda x: math.exp(x - max(values)) if x > -math.inf else 0.0
    else:
        weigh = lambda x: (sum(y < x for y in values) + (1 + sum(y == x for y in values)) / 2) / len(values)
    return [0.0 if v is None or v.value is None else weigh(v.value) for v in verdicts]
