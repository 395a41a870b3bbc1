"""The table of a compute-optimal strategy: which arm each bin of difficulty gets, so that a mean budget buys most right answers.

Fitted by trying every table (arms ^ bins) on trials of development questions; judged by two-fold cross-checking, since a table
that was fitted on the questions that it is judged on flatters itself (Snell et al. 2024, arXiv:2408.03314, section 3.2).
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.core.errors import BadField

MAX_TABLES = 200_000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question, run once under every arm."""

    ease: float  # as the strategy estimates it
    right: tuple[float, ...]  # per arm, in [0, 1]: whether its answer was right, or how often
    tokens: tuple[float, ...]  # per arm, the first answers included


@dataclass(frozen=True, kw_only=True)
class Table:
    edges: tuple[float, ...]  # bin k holds eases from edges[k-1] on and below edges[k]
    arms: tuple[int, ...]  # per bin, the hardest first
    right: float  # mean over the trials that it was fitted on
    tokens: float

    def arm(self, ease: float) -> int:
        return self.arms[bisect_right(self.edges, ease)]


def fitted(trials: Sequence[Trial], num_bins: int, tokens: float) -> Table:
    """The table of equally filled bins with most right answers at `tokens` per question in the mean; of equal ones the cheaper.

    Raises BadField where no table is that cheap, or there are too many to try.
    """
    check(trials, num_bins)
    edges = quantiles([t.ease for t in trials], num_bins)
    bins = [[t for t in trials if bisect_right(edges, t.ease) == k] for k in range(len(edges) + 1)]
    num_arms = len(trials[0].right)
    if num_arms ** len(bins) > MAX_TABLES:
        raise BadField(f"{num_arms} arms in {len(bins)} bins make {num_arms ** len(bins)} tables: at most {MAX_TABLES}; take fewer bins or arms")
    right = [[math.fsum(t.right[a] for t in one) / len(trials) for a in range(num_arms)] for one in bins]
    price = [[math.fsum(t.tokens[a] for t in one) / len(trials) for a in range(num_arms)] for one in bins]
    best: tuple[float, float, tuple[int, ...]] | None = None
    for arms in itertools.product(range(num_arms), repeat=len(bins)):
        cost = math.fsum(row[a] for row, a in zip(price, arms))
        value = math.fsum(row[a] for row, a in zip(right, arms))
        if cost <= tokens * (1 + 1e-12) and (best is None or (value, -cost) > best[:2]):
            best = value, -cost, arms
    if best is None:
        cheapest = math.fsum(min(row) for row in price)
        raise BadField(f"tokens={tokens}: the cheapest table takes {cheapest:.1f} tokens per question; allow that many")
    return Table(edges=edges, arms=best[2], right=best[0], tokens=-best[1])


def cross_checked(trials: Sequence[Trial], num_bins: int, tokens: float) -> tuple[float, float]:
    """(share right, mean tokens) of tables fitted on one half of the trials and used on the other, both ways round."""
    halves = [trials[::2], trials[1::2]]
    used = [(fitted(halves[1 - k], num_bins, tokens), trial) for k in range(2) for trial in halves[k]]
    picks = [(trial.right[a], trial.tokens[a]) for table, trial in used for a in [table.arm(trial.ease)]]
    return math.fsum(r for r, _ in picks) / len(picks), math.fsum(t for _, t in picks) / len(picks)


def quantiles(values: Sequence[float], num_bins: int) -> tuple[float, ...]:
    """Edges between `num_bins` bins as equally filled as equal values allow; fewer where values repeat."""
    ranked = sorted(values)
    edges = {ranked[len(ranked) * k // num_bins] for k in range(1, num_bins)}
    return tuple(sorted(edges - {ranked[0]}))


def check(trials: Sequence[Trial], num_bins: int) -> None:
    shapes = {(len(t.right), len(t.tokens)) for t in trials}
    if not trials or num_bins < 1 or len(shapes) != 1 or 0 in min(shapes) or len(set(min(shapes))) != 1:
        raise BadField(f"{len(trials)} trials, {num_bins} bins: give at least one of each, and for every trial the same arms with their tokens")
    if any(not all(math.isfinite(x) for x in (t.ease, *t.right, *t.tokens)) for t in trials):
        raise BadField("a trial holds a number that is not finite; leave such trials out, or say what they cost")
