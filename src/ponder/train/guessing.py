"""Heads that guess ahead, fitted to millions of a model's own tokens and states, on the CPU or a card.

What a head must guess is what the model said next, and, in part, what it held likely there: the state that the token was drawn from
is at hand, so its distribution over the scored tokens is one product away. The target stays as it is.

Shapes: N states of all texts one after the other, D width, K heads, S scored ids, R ids whose rows are read, M states of a step.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.accelerate.draft.heads import Heads, scored
from ponder.accelerate.draft.hydra_heads import HydraHeads, size_of, stepped
from ponder.core.errors import BadField
from ponder.train.descent import step_down, steps
from ponder.train.own_text import Texts

NONE = -1


@dataclass(frozen=True, kw_only=True)
class GuessRecipe:
    """How heads are fitted. Raises BadField."""

    num: int = 4  # heads
    num_scored: int = 4096  # tokens that heads score, the most frequent ones
    num_read: int = 16384  # tokens whose rows heads read
    soft: float = 0.3  # share of the loss that is against the model's distribution; the rest against what it said
    fade: float = 0.8  # weight of a head beside the one before it
    batch: int = 4096
    rate: float = 1e-3  # of AdamW at its highest; it falls to 0 along a cosine
    decay: float = 0.01  # weight decay
    warm: int = 100  # steps in which the rate rises
    max_steps: int = 20_000
    max_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num, self.num_scored, self.batch, self.warm, self.max_steps) < 1 or self.num_read < self.num_scored:
            raise BadField(f"{self}: num, num_scored, batch, warm and max_steps at least 1, num_read at least num_scored")
        if min(self.rate, self.max_seconds, self.fade) <= 0 or self.decay < 0 or not 0 <= self.soft <= 1:
            raise BadField(f"{self}: rate, max_seconds and fade above 0, decay at least 0, soft in [0, 1]")


@dataclass(frozen=True)
class Corpus:
    """tokens int64 [N], NONE in the gaps between texts, which are as long as any head looks ahead; states [N, D]; starts: where heads may begin."""

    tokens_N: Tensor
    states_ND: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return int((self.tokens_N != NONE).sum())


def corpus(text: Texts, ahead: int) -> Corpus:
    """Of a batch, where its states lie. Heads may begin where a token comes behind the drawn one."""
    length = text.tokens_BN.shape[1]
    tokens_BX = F.pad(text.tokens_BN, (0, ahead), value=NONE)
    is_kept_BX = (tokens_BX != NONE) | (torch.arange(length + ahead, device=tokens_BX.device) >= length)
    return opened(tokens_BX[is_kept_BX], F.pad(text.states_BND, (0, 0, 0, ahead))[is_kept_BX])


def joined(parts: Sequence[Corpus]) -> Corpus:
    """All texts of all parts."""
    return opened(torch.cat([part.tokens_N for part in parts]), torch.cat([part.states_ND for part in parts]))


def opened(tokens_N: Tensor, states_ND: Tensor) -> Corpus:
    is_start = (tokens_N[:-1] != NONE) & (tokens_N[1:] != NONE)
    return Corpus(tokens_N, states_ND, is_start.nonzero()[:, 0])


def frequent(tokens_N: Tensor, num: int, without: frozenset[int]) -> Tensor:
    """int64 [at most num] on the CPU: the tokens that come most often, most frequent first, of equals the smaller id."""
    counts = torch.bincount(tokens_N[tokens_N != NONE].cpu())
    counts[[token for token in without if token < len(counts)]] = 0
    return counts.sort(descending=True, stable=True).indices[: min(num, int((counts > 0).sum()))]


class Kind(Protocol):
    """What heads are made of. logits: of every head [M, S], given h [M, D], the rows [R, D] and the places in them of x_1 .. x_K [M, K]."""

    weights: list[Tensor]

    def logits(self, h_MD: Tensor, rows_RD: Tensor, places_MK: Tensor) -> list[Tensor]: ...

    def heads(self, model_id: str, ids: Tensor, rows_RD: Tensor, facts: dict[str, object]) -> Heads | HydraHeads: ...


class Parallel:
    """Medusa's: every head reads the state and the newest token."""

    def __init__(self, recipe: GuessRecipe, width: int, device: torch.device) -> None:
        self.num_scored = recipe.num_scored
        self.weights = [torch.zeros(recipe.num, width, 2 * width, device=device)]

    def logits(self, h_MD: Tensor, rows_RD: Tensor, places_MK: Tensor) -> list[Tensor]:
        rows_SD, places_M = rows_RD[: self.num_scored], places_MK[:, 0]
        return list(scored(self.weights[0], rows_SD, h_MD, torch.where(places_M < len(rows_SD), places_M, NONE)).unbind(1))

    def heads(self, model_id: str, ids: Tensor, rows_RD: Tensor, facts: dict[str, object]) -> Heads:
        ids_S = ids[: self.num_scored].clone()
        residual, rows_SD = self.weights[0].detach().bfloat16().cpu(), rows_RD[: len(ids_S)].bfloat16().cpu()
        return Heads(model_id=model_id, residual=residual, rows=rows_SD, ids=ids_S, facts=facts)


class Chained:
    """Hydra's: a cell reads the token that came and makes the next state; head k has cell min(k, num_cells)."""

    def __init__(self, recipe: GuessRecipe, width: int, device: torch.device, *, inner: int, num_cells: int) -> None:
        self.num, self.num_scored = recipe.num, recipe.num_scored
        draws = torch.Generator().manual_seed(recipe.seed)
        straight_DE = torch.cat([torch.eye(width), torch.zeros(width, width)], 1)
        start_XE = torch.cat([torch.randn(2 * inner, 2 * width, generator=draws) / math.sqrt(2 * width), straight_DE])
        self.weights = [
            start_XE.expand(num_cells, -1, -1).clone().to(device),
            torch.zeros(num_cells, width, inner, device=device),
        ]

    def logits(self, h_MD: Tensor, rows_RD: Tensor, places_MK: Tensor) -> list[Tensor]:
        size_M1 = size_of(h_MD)
        u_MD, found = (h_MD / size_M1).to(h_MD.dtype), []
        for k in range(self.num):
            cell, places_M = min(k, len(self.weights[0]) - 1), places_MK[:, k]
            e_MD = torch.where(places_M[:, None] >= 0, rows_RD[places_M.clamp_min(0)], 0.0).to(h_MD.dtype)
            u_MD = stepped(self.weights[0][cell].to(h_MD.dtype), self.weights[1][cell].to(h_MD.dtype), u_MD, e_MD)
            found.append(((u_MD * size_M1).to(rows_RD.dtype) @ rows_RD[: self.num_scored].T).float())
        return found

    def heads(self, model_id: str, ids: Tensor, rows_RD: Tensor, facts: dict[str, object]) -> HydraHeads:
        inner, outer = (w.detach().bfloat16().cpu() for w in self.weights)
        return HydraHeads(model_id=model_id, num=self.num, num_scored=min(self.num_scored, len(ids)), inner=inner, outer=outer, ids=ids, facts=facts)


@dataclass(frozen=True)
class Lesson:
    """rows [R, D] of ids; place [V]: of every token in ids, NONE where it has none."""

    rows_RD: Tensor
    place_V: Tensor
    recipe: GuessRecipe

    def losses(self, kind: Kind, given: Corpus, at_M: Tensor) -> Tensor:
        """Mean log loss of each head [K] at those states."""
        recipe, num = self.recipe, self.recipe.num
        tokens_MX = given.tokens_N[at_M[:, None] + torch.arange(num + 1, device=at_M.device)]
        places_MX = torch.where(tokens_MX == NONE, NONE, self.place_V[tokens_MX.clamp_min(0)])
        wanted_MK = torch.where(places_MX[:, 1:] < recipe.num_scored, places_MX[:, 1:], NONE)
        found = kind.logits(given.states_ND[at_M], self.rows_RD, places_MX[:, :num])
        losses = []
        for k, logits_MS in enumerate(found):
            is_known = wanted_MK[:, k] != NONE
            log_p_MS = logits_MS.log_softmax(-1)
            loss_M = -log_p_MS.gather(1, wanted_MK[:, k : k + 1].clamp_min(0))[:, 0]
            if recipe.soft:
                with torch.no_grad():
                    said_MS = (given.states_ND[at_M + k + 1] @ self.rows_RD[: recipe.num_scored].T.to(given.states_ND.dtype)).float().softmax(-1)
                loss_M = (1 - recipe.soft) * loss_M - recipe.soft * (said_MS * log_p_MS).sum(-1)
            losses.append((loss_M * is_known).sum() / is_known.sum().clamp_min(1))
        return torch.stack(losses)

    @torch.no_grad()
    def shares(self, kind: Kind, given: Corpus, tops: Sequence[int] = (1, 5)) -> dict[str, list[float]]:
        """By head, how often what came is among its likeliest tokens, given what came before it, among all places that have a token there."""
        num, right, total = self.recipe.num, {top: [0.0] * self.recipe.num for top in tops}, [0] * self.recipe.num
        for at_M in given.starts.split(self.recipe.batch):
            tokens_MX = given.tokens_N[at_M[:, None] + torch.arange(num + 1, device=at_M.device)]
            places_MX = torch.where(tokens_MX == NONE, NONE, self.place_V[tokens_MX.clamp_min(0)])
            for k, logits_MS in enumerate(kind.logits(given.states_ND[at_M], self.rows_RD, places_MX[:, :num])):
                total[k] += int((tokens_MX[:, k + 1] != NONE).sum())
                best = logits_MS.topk(min(max(tops), logits_MS.shape[1])).indices
                for top in tops:
                    right[top][k] += float((best[:, :top] == places_MX[:, k + 1 : k + 2]).sum())
        return {f"top{top}": [round(r / max(1, n), 4) for r, n in zip(right[top], total)] for top in tops}


def lesson(ids: Tensor, rows_RD: Tensor, vocab_size: int, recipe: GuessRecipe) -> Lesson:
    """rows: those of ids, where training is to run."""
    place_V = torch.full((vocab_size,), NONE, device=rows_RD.device)
    place_V[ids.to(rows_RD.device)] = torch.arange(len(ids), device=rows_RD.device)
    return Lesson(rows_RD, place_V, recipe)


def descend(
    kind: Kind, taught: Lesson, given: Corpus, *, on_step: Callable[[int, list[float]], None] = lambda i, losses: None, every: int = 200
) -> dict[str, object]:
    """AdamW along a cosine until the steps or the seconds are over; the weights change in place. Returns what it did."""
    recipe, device = taught.recipe, given.tokens_N.device
    draws = torch.Generator(device=device).manual_seed(recipe.seed)
    fade_K = torch.tensor([recipe.fade**k for k in range(recipe.num)], device=device)
    num = 0
    with torch.inference_mode(False), torch.enable_grad():
        kind.weights = [w.clone().requires_grad_() for w in kind.weights]
        optimizer = torch.optim.AdamW(kind.weights, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98), fused=device.type == "cuda")
        start = time.perf_counter()  # making an optimizer imports a compiler first
        for step in steps(optimizer, rate=recipe.rate, max_steps=recipe.max_steps, max_seconds=recipe.max_seconds, warm=recipe.warm):
            at_M = given.starts[torch.randint(len(given.starts), (min(recipe.batch, len(given.starts)),), generator=draws, device=device)]
            losses_K = taught.losses(kind, given, at_M)
            step_down(optimizer, (losses_K * fade_K).sum(), kind.weights)
            if step % every == 0:
                on_step(step, [round(x, 3) for x in losses_K.tolist()])
            num = step + 1
    kind.weights = [w.detach() for w in kind.weights]
    return {"num_steps": num, "num_tokens": len(given), "seconds": round(time.perf_counter() - start, 1), "num_seen": num * recipe.batch}


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """Whose heads are fitted. logits: by its output head, [n, D] -> [n, V], of states as they are in the corpus."""

    model_id: str
    vocab_size: int
    eos_ids: frozenset[int]
    logits: Callable[[Tensor], Tensor]


def fit_guessing(
    target: Guessed, make: Callable[[GuessRecipe, int, torch.device], Kind], learned: Corpus, unseen: Corpus, *, recipe: GuessRecipe,
    on_step: Callable[[int, list[float]], None] = lambda i, losses: None,
) -> Heads | HydraHeads:  # fmt: skip
    """Heads fitted to what was learned, and measured on what was not."""
    ids = frequent(learned.tokens_N, recipe.num_read, target.eos_ids)
    recipe = replace(recipe, num_scored=min(recipe.num_scored, len(ids)))
    states_ND = learned.states_ND
    device, width = states_ND.device, states_ND.shape[1]
    unit = torch.eye(width, dtype=states_ND.dtype, device=device)
    rows_RD = torch.cat([target.logits(some)[:, ids.to(device)] for some in unit.split(64)]).T.to(states_ND.dtype).contiguous()
    kind, taught = make(recipe, width, device), lesson(ids, rows_RD, target.vocab_size, recipe)
    before = taught.shares(kind, unseen)
    facts = descend(kind, taught, learned, on_step=on_step)
    facts |= {"top1_untrained": before["top1"], "unseen_tokens": len(unseen)} | taught.shares(kind, unseen)
    return kind.heads(target.model_id, ids, rows_RD, facts)
