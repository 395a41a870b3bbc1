"""Draft as much as brings the most tokens per second, by what drafts of each depth brought and what steps of each width cost; or nothing.

Paper      none; the objective is that of Leviathan, Kalman, Matias 2023, arXiv:2211.17192, section 3.3, with costs measured, not assumed
Equation   the m with the most (num + sum over the first m tokens of the chance that each is reached) / C(num_rows + m); chance of depth d =
           prod_{e<=d} a_e, a_e the share of tokens of depth e accepted once their parents were; with a drafter's chances, a_e is a
           token's, by how true they came. Balance of a request, in steps: += earned + accepted - what its rows and drafting cost
Shapes     requests, trees -> one count each
Guarantee  exact: no answer changes, only what it costs
Cost       where drafts are in vain `credit` steps of a request, and `earned` of each, halved whenever lost again; less for requests after such
Choose     the default: drafts never cost a request more than its balance.
Differs    C is a table, measured when the process is opened: the clock, which a busy machine misleads, is not read later. Acceptance is a
           request's own, with the mean of all as its prior of `weight` tokens; both forget, by `memory`. Who was asked in vain is asked again
           after 2, 4, 8, 16 steps, no more than there are requests at once; nobody is where not even a copied text would pay
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ponder.accelerate.length.balance import MARGIN, Balance, Prices
from ponder.accelerate.length.shares import DEPTHS, Shares
from ponder.core.draft import Spent, StepCosts, Tree, Verified, always
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee

NUM_PROBED = 3  # tokens of a draft that is only to find out
TRY = 1.5  # prices of one guess that a request may lose, where the price is mostly waiting


@dataclass(frozen=True, kw_only=True)
class Expected:
    num: int = 31  # most tokens of a draft
    memory: float = 0.95  # share of what was seen before that a round keeps
    weight: float = 4.0  # tokens that the mean of all requests counts for
    credit: float = 0.5  # steps that a request may lose at first
    earned: float = 0.02  # of a step, what it may lose more with each

    guarantee = Guarantee.EXACT

    def __post_init__(self) -> None:
        if self.num < 0 or not 0 < self.memory < 1 or self.weight <= 0 or self.credit <= 0 or not 0 <= self.earned < 1:
            raise BadField(f"expected {self}: num must be at least 0, memory in (0, 1), weight and credit positive, earned in [0, 1)")

    def open(self, costs: Callable[[], StepCosts]) -> "Weighing":
        return Weighing(self, costs())


@dataclass
class Weighing:
    settings: Expected
    costs: StepCosts
    all: Shares = field(default_factory=Shares)
    own: dict[int, Balance] = field(default_factory=dict)
    trust: float = 1.0  # of `credit`, what a new request begins with
    num: int = 0  # requests that decode in this step
    asked: set[int] = field(default_factory=set)  # of them, those that a draft was made for
    goes_on = staticmethod(always)

    def __post_init__(self) -> None:
        self.prices = Prices(self.costs, self.settings.num)

    def rooms(self, requests: Sequence[int]) -> list[int]:
        """None to requests that nap or lost more than they had, nor to any where not even a copied text pays, or all together could not pay for one
        refused token."""
        self.num, self.asked = len(requests), set()
        if requests and self._left(requests) > self.prices.least(self.num):
            self.asked = {r for r in requests if (own := self._of(r)).is_awake() and own.balance > -self.settings.credit}
        return [self.settings.num if request in self.asked else 0 for request in requests]

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        """The best number of tokens whose loss could be paid for; where that is none, a probe as soon as twice its price is there."""
        most, plain, counts = self._left(requests), self.costs.of(num_rows), [0] * len(trees)
        if not any(trees):
            return counts
        offers = [(gain, -k, at) for at, (r, tree) in enumerate(zip(requests, trees)) for k, gain in enumerate(self._reached(r, tree))]
        offers.sort(reverse=True)
        tokens, chosen = float(max(self.num, len(requests))), 0
        best = (1 + MARGIN) * tokens / plain
        for num, (gain, _, _) in enumerate(offers, 1):
            tokens, price = tokens + gain, self.prices.of(num_rows, num)
            if price > most:
                break
            if tokens / (plain + price) > best:
                best, chosen = tokens / (plain + price), num
        for _, _, at in offers[:chosen]:
            counts[at] += 1
        probed = next((num for num in range(NUM_PROBED, 1, -1) if self.prices.of(num_rows, num) <= plain / max(1, self.num)), 1)
        if offers and not chosen and most > 2 * self.prices.of(num_rows, probed):
            at = max((i for i, tree in enumerate(trees) if len(tree)), key=lambda i: self._of(requests[i]).balance)
            counts[at] = min(probed, len(trees[at]))
        return counts

    def _of(self, request: int) -> Balance:
        if request not in self.own:
            credit = max(self.settings.credit * self.trust, TRY * self.prices.of(1, 1) / self.costs.of(1) if self.costs.waiting else 0.0)
            self.own[request] = Balance(credit, credit)
        return self.own[request]

    def _left(self, requests: Sequence[int]) -> float:
        """Seconds that drafts for all of these may lose."""
        return self.prices.worth(max(1, self.num, len(requests))) * sum(self._of(request).balance for request in requests)

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        num, drafted = max(1, len(verified)), sum(len(new.tree) for new in verified)
        if not drafted and not self.asked:
            for new in verified:
                self._of(new.request).pay(0.0, self.settings.earned)
            return
        worth = self.prices.worth(num)
        row = (self.costs.of(num + drafted) - self.costs.of(num)) / max(1, drafted) / worth
        asking = 0.0 if spent is None or not self.asked else spent.draft_seconds / len(self.asked) / worth
        for new in verified:
            self._count(new)
            asked = asking if new.request in self.asked else 0.0
            self._of(new.request).pay(row * len(new.tree) + asked - len(new.path), self.settings.earned)
            if new.request in self.asked:
                self._of(new.request).asked(has_brought=bool(new.path), num=num)
        self.asked = set()

    def forget(self, request: int) -> None:
        own = self.own.pop(request, None)
        if own is not None:
            self.trust = min(1.0, max(0.1, self.trust * (1.5 if own.balance > own.begun else 0.7)))

    def _count(self, new: Verified) -> None:
        """Depth by depth: whether any of the children that were offered there was taken, against what their chances promised."""
        own, chances, memory = self._of(new.request).shares, new.tree.chances, self.settings.memory
        for depth, at in enumerate((-1, *new.path), 1):
            if not new.tree.children[at]:
                break
            for shares in (own, self.all):
                shares.add(
                    min(depth, DEPTHS), float(len(new.path) >= depth), memory, sum(chances[i] for i in new.tree.children[at]) if chances else 1.0
                )

    def _reached(self, request: int, tree: Tree) -> list[float]:
        """For every token the chance that it is accepted with all before it; siblings without chances share what their depth gets."""
        own, settings, chances, found = self._of(request).shares, self.settings, tree.chances, list[float]()
        for i, (parent, depth) in enumerate(zip(tree.parents, tree.depths)):
            share = own.share(min(depth, DEPTHS), self.all.share(min(depth, DEPTHS), 0.7 if chances is None else 1.0, 1.0), settings.weight)
            share = share / len(tree.children[parent]) if chances is None else min(1.0, share * chances[i])
            found.append(min(share * (found[parent] if parent >= 0 else 1.0), found[-1] if found else 1.0))
        return found
