"""Acceptance heads fitted to rounds of a model and its drafter: what was guessed, and whether it was accepted.

Rounds are recorded as they come, with drafts of a fixed length: the guesses of a round up to its first refused one are lessons,
those behind it were never judged. Splits are by prompt, and what is measured was neither trained on nor used to stop.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.length.accept_head import AcceptHead, features, scored
from ponder.core.draft import Guess, Spent, StepCosts, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.train.fit import split_groups

LEAST_PROMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AcceptRecipe:
    """How an acceptance head is fitted. Raises BadField."""

    num: int = 8  # tokens of every recorded draft
    hidden: int = 32  # inner units
    reject_weight: float = 3.0  # of a refused guess's loss beside an accepted one's
    batch: int = 256
    rate: float = 1e-3  # of AdamW
    decay: float = 0.1  # weight decay
    max_epochs: int = 40
    patience: int = 6  # epochs without a better held-out loss
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num, self.hidden, self.batch, self.max_epochs, self.patience) < 1 or min(self.rate, self.reject_weight) <= 0 or self.decay < 0:
            raise BadField(f"{self}: num, hidden, batch, max_epochs and patience at least 1, rate and reject_weight above 0, decay at least 0")


@dataclass(frozen=True)
class Judged:
    """Of one round the guesses up to the first refused one, and how many of them were accepted: all, or all but the last."""

    request: int
    guesses: tuple[Guess, ...]
    num_accepted: int


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """A length control of fixed length that keeps what became of every guess, in the order of rounds."""

    num: int = 8  # tokens of every draft
    judged: list[Judged] = field(default_factory=list)
    costs: list[tuple[float, float]] = field(default_factory=list)  # of a round: seconds of its pass and acceptance, of drafting a token

    guarantee = Guarantee.EXACT

    def open(self, costs: Callable[[], StepCosts]) -> "Recording":
        return Recording(self)


@dataclass
class Recording:
    settings: Recorder
    drafts: dict[int, tuple[Guess, ...]] = field(default_factory=dict)

    def rooms(self, requests: Sequence[int]) -> list[int]:
        return [self.settings.num + 1] * len(requests)  # nobody is asked after the last token that has room: one more than is wanted

    def goes_on(self, requests: Sequence[int], drafts: Sequence[Sequence[Guess]]) -> list[bool]:
        self.drafts |= {request: tuple(draft) for request, draft in zip(requests, drafts)}
        return [len(draft) < self.settings.num for draft in drafts]

    def cut(self, requests: Sequence[int], trees: Sequence[Tree], num_rows: int) -> list[int]:
        return [len(tree) for tree in trees]

    def learn(self, verified: Sequence[Verified], spent: Spent | None) -> None:
        if spent is not None and spent.num_drafted:
            self.settings.costs.append((spent.seconds, spent.draft_seconds * len(verified) / spent.num_drafted))
        for new in verified:
            draft = self.drafts.pop(new.request, ())[: len(new.tree)]
            is_whole = len(new.tokens) == len(new.path) + 1  # else the answer ended before the next guess was judged
            known = draft[: len(new.path) + is_whole]
            if known:
                self.settings.judged.append(Judged(new.request, known, min(len(new.path), len(known))))

    def forget(self, request: int) -> None:
        self.drafts.pop(request, None)


@dataclass(frozen=True)
class Lessons:
    z_NF: Tensor
    is_accepted_N: Tensor  # float32

    def __len__(self) -> int:
        return len(self.z_NF)


def lessons(rounds: Sequence[Judged]) -> Lessons:
    drafts = [(r.guesses[: i + 1], i < r.num_accepted) for r in rounds for i in range(len(r.guesses))]
    return Lessons(features([d for d, _ in drafts]), torch.tensor([float(a) for _, a in drafts]))


def fit_accept_head(rounds: Sequence[Judged], *, drafter: str, recipe: AcceptRecipe | None = None) -> AcceptHead:
    """A head fitted on 70 % of the requests, stopped on 15 %, measured on the others. Raises BadField for few requests or one kind of outcome."""
    recipe, start = recipe or AcceptRecipe(), time.perf_counter()
    parts = split_groups([str(r.request) for r in rounds], (0.7, 0.15), recipe.seed)
    if sum(map(len, parts)) < LEAST_PROMPTS or not all(parts):
        raise BadField(f"rounds of {sum(map(len, parts))} answers: at least {LEAST_PROMPTS}, so that some can be held out")
    train, stop, unseen = (lessons([r for r in rounds if str(r.request) in part]) for part in parts)
    if float(train.is_accepted_N.std()) == 0:
        raise BadField(f"all {len(train)} guesses had one outcome: there is nothing to tell apart; record longer drafts or other prompts")
    width = train.z_NF.shape[1]
    blank = AcceptHead(
        drafter=drafter, w_in=torch.zeros(recipe.hidden, width), w_out=torch.zeros(recipe.hidden), w_skip=torch.zeros(width), bias=torch.zeros(1),
        facts={},
    )  # fmt: skip
    with torch.inference_mode(False), torch.enable_grad():
        head, num_epochs = descend(blank, train, stop, recipe)
    logits = scored(unseen.z_NF, (head.w_in, head.w_out, head.w_skip, head.bias))
    facts: dict[str, object] = {
        "num_guesses": len(train), "accepted": round(float(train.is_accepted_N.mean()), 4), "num_epochs": num_epochs,
        "seconds": round(time.perf_counter() - start, 1), "unseen_guesses": len(unseen), "auroc": round(auroc(logits, unseen.is_accepted_N), 4),
        "auroc_of_q": round(auroc(unseen.z_NF[:, -2], unseen.is_accepted_N), 4), "reject_weight": recipe.reject_weight,
    }  # fmt: skip
    return replace(head, facts=facts)


def cost_per_token(rounds: Sequence[Judged], head: AcceptHead, *, draft: float, stop_above: float) -> float:
    """In rounds, had each stopped where the head says: what a round costs is 1, what a drafted token costs is `draft`."""
    cost = tokens = 0.0
    for judged in rounds:
        reach = torch.tensor(head.chances([judged.guesses[: i + 1] for i in range(len(judged.guesses))])).cumprod(0)
        num = min(len(judged.guesses), 1 + int((1 - reach <= stop_above).sum()))  # reach never rises
        cost += 1 + draft * num
        tokens += 1 + min(num, judged.num_accepted)
    return cost / tokens


def best_threshold(rounds: Sequence[Judged], head: AcceptHead, *, draft: float) -> float:
    """Of twenty, the one that costs least on those rounds."""
    return min((n / 20 for n in range(1, 21)), key=lambda stop_above: cost_per_token(rounds, head, draft=draft, stop_above=stop_above))


def descend(head: AcceptHead, train: Lessons, stop: Lessons, recipe: AcceptRecipe) -> tuple[AcceptHead, int]:
    """AdamW on the weighted log loss until the held-out one stops falling; the best head and the number of epochs."""
    draws = torch.Generator().manual_seed(recipe.seed)
    train, stop = (Lessons(part.z_NF.clone(), part.is_accepted_N.clone()) for part in (train, stop))  # copies may take part in a gradient
    weights = [torch.randn(head.w_in.shape, generator=draws) / math.sqrt(head.w_in.shape[1]), head.w_out, head.w_skip, head.bias]
    weights = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.decay)
    best, best_loss, best_epoch, epoch = [w.detach().clone() for w in weights], math.inf, 0, 0
    while epoch < recipe.max_epochs and epoch - best_epoch < recipe.patience:
        epoch += 1
        for places in torch.randperm(len(train), generator=draws).split(recipe.batch):
            optimizer.zero_grad()
            loss_of(weights, train.z_NF[places], train.is_accepted_N[places], recipe.reject_weight).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(loss_of(weights, stop.z_NF, stop.is_accepted_N, recipe.reject_weight))
        if loss < best_loss:
            best, best_loss, best_epoch = [w.detach().clone() for w in weights], loss, epoch
    return replace(head, w_in=best[0], w_out=best[1], w_skip=best[2], bias=best[3]), epoch


def loss_of(weights: Sequence[Tensor], z_NF: Tensor, is_accepted_N: Tensor, reject_weight: float) -> Tensor:
    """Mean log loss in which a refused guess counts reject_weight times."""
    weight_N = torch.where(is_accepted_N > 0, 1.0, reject_weight)
    return F.binary_cross_entropy_with_logits(scored(z_NF, weights), is_accepted_N, weight_N)


def auroc(scores_N: Tensor, is_right_N: Tensor) -> float:
    """Chance that a right one scores above a wrong one, ties half; nan where one kind is missing."""
    right, wrong = scores_N[is_right_N > 0], scores_N[is_right_N <= 0].sort().values
    below, above = torch.searchsorted(wrong, right), torch.searchsorted(wrong, right, right=True)
    return float(((below + above) / 2 / max(1, len(wrong))).mean()) if len(wrong) else math.nan
