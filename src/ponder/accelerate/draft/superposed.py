"""Several continuations for the passes of one: at each place a model reads a weighted sum of what they say, and n-grams tell them apart.

Paper      Shen et al. 2024, "Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass" (arXiv:2405.18400)
Equation   place d holds sum_i g_i e(x_i), g_i in proportion to path i's probability, x_i its last token; of the likeliest tokens x of what
           the model then says, (path i, x) is worth p_i q(x)^(1 - share) n(x | path i)^share; the best `paths` of them go on
Shapes     contexts -> trees of at most `paths` branches, min(num, room) deep, with chances
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       a pass of the drafting model per depth, one for all paths and requests; counts of stretches of the request's tokens
Choose     where a draft model is nearly right: its second and third choices for no pass more. One path and share=0 is its greedy chain.
Differs    n-grams are of the request's own tokens, with weights of the orders that were seen; the paper's are of a large corpus and
           filter answers that are shown as they are, where here the target's pass decides
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.accelerate.draft.chains import thinned
from ponder.accelerate.draft.stretches import Counts
from ponder.core.draft import EMPTY, ROOT, Blur, Context, Host, Needs, Runner, Scope, Tree, Twin, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

ORDERS = (0.01, 0.04, 0.15, 0.18, 0.12)  # weights of 2- to 6-grams, as the paper has them; used in proportion
FLOOR = 1e-3  # of an n-gram that was never seen


@dataclass(frozen=True, kw_only=True)
class Superposed:
    model: str | None = None  # name or file of the drafting model; None: the target itself, in other weights or with layers left out
    weights: str | None = None  # format of another model; None: the target's layers, of which some stay
    ends: int = 4  # layers at either end that stay
    every: int = 2  # of the layers between, one in so many stays
    paths: int = 3  # continuations at once
    num: int = 4  # most tokens of a path
    share: float = 0.3  # of n-grams in what a token is worth, in [0, 1]
    least: float = 0.1  # chance of the best path below which nothing more is drafted

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if min(self.paths, self.num) < 1 or not 0 <= self.share <= 1 or not 0 <= self.least <= 1:
            raise BadField(f"superposed {self}: paths and num must be at least 1, share and least in [0, 1]")

    def open(self, host: Host) -> "Superposing":
        is_other = self.model is not None or self.weights is not None
        skips = () if is_other else thinned(host.num_layers, self.ends, self.every)
        return Superposing(self, host.runner(Twin(model=self.model, weights=self.weights, skips=skips)))


@dataclass(frozen=True)
class Path:
    """tokens of a continuation, what it is worth (log), and how likely the model held each token."""

    tokens: tuple[int, ...] = ()
    worth: float = 0.0
    chances: tuple[float, ...] = ()


@dataclass
class Superposing:
    settings: Superposed
    runner: Runner
    seen: dict[int, tuple[Counts, int]] = field(default_factory=dict)  # of each request: stretches, and how many tokens they are of

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        paths = [[Path()] for _ in contexts]
        blurs: list[list[Blur]] = [[] for _ in contexts]
        alive = list(range(len(contexts)))
        counts = [self._counts(context) for context in contexts]
        for depth in range(self.settings.num):
            alive = [i for i in alive if depth < min(contexts[i].room, contexts[i].max_depth)]
            found = self.runner.likely([contexts[i] for i in alive], [blurs[i] for i in alive], self.settings.paths) if alive else []
            alive = [i for i, likely in zip(alive, found, strict=True) if likely is not None and self._grow(paths[i], likely, contexts[i], counts[i])]
            for i in alive:
                blurs[i].append(blur_of(paths[i]))
        return [tree_of(some).first(context.room) for some, context in zip(paths, contexts)]

    def observe(self, verified: Sequence[Verified]) -> None:
        return None

    def forget(self, request: int) -> None:
        self.seen.pop(request, None)
        self.runner.forget(request)

    def _counts(self, context: Context) -> Counts:
        counts, num = self.seen.get(context.request) or (Counts(len(ORDERS) + 1, 1 << 16), 0)
        counts.read(context.tokens, num)
        self.seen[context.request] = counts, len(context.tokens)
        return counts

    def _grow(self, paths: list[Path], likely: Sequence[tuple[int, float]], context: Context, counts: Counts) -> bool:
        """Puts the best of all paths by one token in their place; whether drafting goes on."""
        share, made = self.settings.share, []
        for path in paths:
            ending = [*context.tokens[-len(ORDERS) :], *path.tokens][-len(ORDERS) :]
            for token, log_p in likely:
                worth = path.worth + (1 - share) * log_p + (share * math.log(ngram(counts, ending, token)) if share else 0.0)
                made.append(Path((*path.tokens, token), worth, (*path.chances, min(1.0, math.exp(log_p)))))
        made.sort(key=lambda path: -path.worth)
        paths[:] = made[: self.settings.paths]
        return max(math.prod(path.chances) for path in paths) >= self.settings.least


def ngram(counts: Counts, ending: Sequence[int], token: int) -> float:
    """How often the token came after the ending, over orders of which the ending was seen; at least FLOOR."""
    total = weights = 0.0
    for num, weight in enumerate(ORDERS, 1):
        node = counts.find(ending[len(ending) - num :]) if num <= len(ending) else None
        if node is None or not node.next:
            break
        weights += weight
        if token in node.next:
            total += weight * node.next[token].count / sum(after.count for after in node.next.values())
    return FLOOR + (1 - FLOOR) * (total / weights if weights else 0.0)


def blur_of(paths: Sequence[Path]) -> Blur:
    """The last tokens of the paths, weighted by what these are worth; equal tokens once."""
    top = max(path.worth for path in paths)
    weights: dict[int, float] = {}
    for path in paths:
        weights[path.tokens[-1]] = weights.get(path.tokens[-1], 0.0) + math.exp(path.worth - top)
    total = sum(weights.values())
    return tuple((token, weight / total) for token, weight in weights.items())


def tree_of(paths: Sequence[Path]) -> Tree:
    """Every beginning of a path once, likeliest first."""
    chances = {path.tokens[:i]: path.chances[:i] for path in paths for i in range(1, len(path.tokens) + 1)}
    ordered = sorted(chances, key=lambda tokens: (-math.prod(chances[tokens]), len(tokens)))
    place = {tokens: i for i, tokens in enumerate(ordered)} | {(): ROOT}
    if not ordered:
        return EMPTY
    return Tree(
        tuple(tokens[-1] for tokens in ordered), tuple(place[tokens[:-1]] for tokens in ordered), None,
        tuple(chances[tokens][-1] for tokens in ordered),
    )  # fmt: skip
