"""Draft as much as brings the most tokens per second, by what drafts of each depth brought and what steps of each width cost; or nothing.

Paper      none; the objective is that of Leviathan, Kalman, Matias 2023, arXiv:2211.17192, section 3.3, with costs measured, not assumed
Equation   tokens(m) = num + sum over trees of the chance that each of its first tokens is reached; chance of depth d = prod_{e<=d} a_e, with
           a_e the share of tokens of depth e that was accepted once their parents were; choose the m that maximises
           tokens(m) / (C(num_rows + m) + D), D what drafting takes. With a drafter's chances, a_e is a token's, by how true they came.
Shapes     requests, trees -> one count each
Guarantee  exact: no answer changes, only what it costs
Cost       a few numbers per request; where drafts do not pay, three rows more in one step of `probe_every`, then ever rarer
Choose     the default: it gives up where drafts do not pay and never costs more than its probes.
Differs    acceptance is a request's own, with the mean of all as its prior of `weight` tokens; both forget, by `memory`
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.core.draft import Spent, Tree, Verified, always
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

LARGER, SMALLER = 0.1, 0.4  # how fast a cost follows one that is larger, and one that is smaller: what else the machine does only adds
DEPTHS = 32  # beyond, depths count as this one
CHEAP = 0.02  # of a step: drafts that cost less are always made
MARGIN = 0.03  # that a draft must promise beyond plain decoding: costs and shares are estimates
NUM_PROBED = 3  # tokens of a draft that is only to find out


@dataclass(frozen=True, kw_only=True)
class Expected:
    num: int = 12  # most tokens of a draft
    memory: float = 0.95  # share of what was seen before that a round keeps
    weight: float = 4.0  # tokens that the mean of all requests counts for
    probe_every: int = 32  # steps without a draft after which one is tried; doubles while that is in vain, up to 16 times

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.num < 0 or not 0 < self.memory < 1 or self.weight <= 0 or self.probe_every < 1:
            raise BadField(f"expected {self}: num must be at least 0, memory in (0, 1), weight positive, probe_every at least 1")

    def open(self) -> "Weighing":
        return Weighing(self)


@dataclass
class Shares:
    """By depth, how many tokens were looked at and how many of them accepted; what is old counts less."""

    tried: list[float] = field(default_factory=lambda: [0.0] * (DEPTHS + 1))
    taken: list[float] = field(default_factory=lambda: [0.0] * (DEPTHS + 1))

    def add(self, depth: int, num: float, memory: float, promised: float = 1.0) -> None:
        depth = min(depth, DEPTHS)
        self.tried[depth] = memory * self.tried[depth] + promised
        self.taken[depth] = memory * self.taken[depth] + num

    def share(self, depth: int, prior: float, weight: float) -> float:
        depth = min(depth, DEPTHS)
        return (self.taken[depth] + weight * prior) / (self.tried[depth] + weight)


@dataclass
class Weighing:
    settings: Expected
    all: Shares = field(default_factory=Shares)
    own: dict[int, Shares] = field(default_factory=dict)
    costs: dict[int, float] = field(default_factory=dict)  # rows -> seconds of a step
    draft_cost: float = 0.0  # seconds of drafting for a step
    is_off: bool = False
    waited: int = 0  # steps without a draft
    patience: int = 0  # of them before one is tried again
    goes_on = staticmethod(always)

    def rooms(self, requests: Sequence[int]) -> list[int]:
        """Nothing while drafts do not pay, where their making is not for nothing either."""
        is_cheap = not self.costs or self.draft_cost < CHEAP * self.cost(max(1, len(requests)))
        if self.is_off and self.waited < self.patience and not is_cheap:
            self.waited += 1
            return [0] * len(requests)
        return [self.settings.num] * len(requests)

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        if not any(map(len, trees)) or not any(abs(n - num_rows) <= num_rows // 4 for n in self.costs):
            return [0] * len(trees)  # nothing to try, or a plain step's cost to measure first
        if len(self.costs) < 2:
            return [len(tree) for tree in trees]
        counts = self._best(requests, trees, num_rows)
        if any(counts):
            self.is_off, self.patience = False, self.settings.probe_every
        elif self.is_off and self.waited >= self.patience:
            self.waited, self.patience = 0, min(2 * self.patience, 16 * self.settings.probe_every)
            return [min(NUM_PROBED, len(tree)) for tree in trees]
        else:
            self.is_off, self.waited = True, self.waited + 1
            self.patience = self.patience or self.settings.probe_every
        return counts

    def _best(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        offers = [(gain, -k, at) for at, (r, tree) in enumerate(zip(requests, trees)) for k, gain in enumerate(self._reached(r, tree))]
        offers.sort(reverse=True)
        tokens = float(num_rows)
        best, chosen = tokens / self.cost(num_rows), 0
        for num, (gain, _, _) in enumerate(offers, 1):
            tokens += gain
            rate = tokens / (self.cost(num_rows + num) + self.draft_cost) / (1 + MARGIN)
            if rate > best:
                best, chosen = rate, num
        return [sum(where == at for _, _, where in offers[:chosen]) for at in range(len(trees))]

    def cost(self, num_rows: int) -> float:
        """Seconds of a step of that many rows: measured ones and straight lines between them."""
        if num_rows in self.costs:
            return self.costs[num_rows]
        known = sorted(self.costs)
        below, above = max((n for n in known if n < num_rows), default=None), min((n for n in known if n > num_rows), default=None)
        if below is None or above is None:  # as if each row beyond cost what rows cost in the mean
            nearest = known[-1] if above is None else known[0]
            return self.costs[nearest] * (1.0 + 0.5 * (num_rows / nearest - 1.0))
        return self.costs[below] + (self.costs[above] - self.costs[below]) * (num_rows - below) / (above - below)

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        if spent is not None:
            before = self.costs.get(spent.num_rows)
            share = 0.0 if before is None else LARGER if spent.seconds > before else SMALLER
            self.costs[spent.num_rows] = spent.seconds if before is None else before + share * (min(spent.seconds, 4 * before) - before)
            if spent.num_drafted:
                self.draft_cost = 0.8 * self.draft_cost + 0.2 * spent.draft_seconds
        for new in verified:
            self._count(new)

    def forget(self, request: int) -> None:
        self.own.pop(request, None)

    def _count(self, new: Verified) -> None:
        """Depth by depth: whether any of the children that were offered there was taken, against what their chances promised."""
        own, chances, memory = self.own.setdefault(new.request, Shares()), new.tree.chances, self.settings.memory
        for depth, at in enumerate((-1, *new.path), 1):
            if not new.tree.children[at]:
                break
            for shares in (own, self.all):
                shares.add(depth, float(len(new.path) >= depth), memory, sum(chances[i] for i in new.tree.children[at]) if chances else 1.0)

    def _reached(self, request: int, tree: Tree) -> list[float]:
        """For every token the chance that it is accepted with all before it; siblings without chances share what their depth gets."""
        own, settings, chances, found = self.own.get(request, Shares()), self.settings, tree.chances, list[float]()
        for i, (parent, depth) in enumerate(zip(tree.parents, tree.depths)):
            share = own.share(depth, self.all.share(depth, 0.7 if chances is None else 1.0, 1.0), settings.weight)
            share = share / len(tree.children[parent]) if chances is None else min(1.0, share * chances[i])
            found.append(min(share * (found[parent] if parent >= 0 else 1.0), found[-1] if found else 1.0))
        return found
