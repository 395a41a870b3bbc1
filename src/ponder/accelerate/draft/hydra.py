"""Heads that read the guesses before them grow a tree from the target's last state, its likeliest branches first.

Paper      Ankner et al. 2024, "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding" (arXiv:2402.05109); one cell for several heads
           as in Cheng et al. 2024, "Recurrent Drafter" (arXiv:2403.09919); which branches grow as in Li et al. 2024, EAGLE-2 (arXiv:2406.16858)
Equation   chance of a path x_2..x_d = prod_k p_k(x_{k+1} | h, x_1..x_k), h the state that the newest token x_1 was drawn from (draft/hydra_heads)
Shapes     hidden [N, D] -> trees of at most num_tokens tokens, as deep as there are heads
Guarantee  exact (a drafter changes no answer); with an acceptor that is
Cost       a level reads a cell and the scored rows once for all its branches: for SmolLM2 5 MB in 8 bits, some 0.3 ms on a core; training: minutes
           of a card
Choose     free text, where nothing repeats, at few sequences at once. Heads know one model: train them on the one that they are to serve.
Differs    heads score a short list of frequent tokens by the target's own rows; the target is frozen, and its attention is not read
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ponder.accelerate.draft.growth import Plant
from ponder.accelerate.draft.hydra_heads import HydraHeads, gated, size_of
from ponder.accelerate.draft.products import Product, product, rows_of
from ponder.core.draft import EMPTY, Context, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Hydra:
    heads: HydraHeads
    num_tokens: int = 16  # most tokens of a draft
    branches: int = 8  # of each head's tokens, the likeliest that count
    width: int = 6  # most tokens of a level that are followed further
    num_scored: int | None = None  # of the tokens that heads score, the most frequent ones alone; None: all

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs(hidden=True)

    def __post_init__(self) -> None:
        if min(self.num_tokens, self.width) < 1 or not 1 <= self.branches <= self.num <= self.heads.num_scored:
            raise BadField(
                f"hydra num_tokens={self.num_tokens}, width={self.width}, branches={self.branches}, num_scored={self.num}: at least 1, no more "
                f"branches than tokens that are scored, and no more of these than the {self.heads.num_scored} that heads score"
            )

    @property
    def num(self) -> int:
        """Tokens that are scored."""
        return self.heads.num_scored if self.num_scored is None else self.num_scored

    def open(self, host: Host) -> "Growing":
        """Raises BadField for a model of another width or vocabulary."""
        if host.dim != self.heads.dim or host.vocab_size <= int(self.heads.ids.max()):
            raise BadField(
                f"heads of {self.heads.model_id}, width {self.heads.dim}: this model has width {host.dim} and {host.vocab_size} tokens; "
                "train heads on it (`ponder train-heads`)"
            )
        cells = [(product(inner), product(outer)) for inner, outer in zip(self.heads.inner, self.heads.outer)]
        return Growing(self, host, cells)


@dataclass
class Growing:
    """Drafting of Hydra. states: by request, what the newest token was drawn from; rows: the target's, once a state has come."""

    settings: Hydra
    host: Host
    cells: list[tuple[Product, Product]]
    states: dict[int, Tensor] = field(default_factory=dict)
    rows: tuple[Tensor, Product] | None = None

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        known = [i for i, context in enumerate(contexts) if context.request in self.states]
        plants = {i: Plant(contexts[i].tokens[-1], min(self.settings.num_tokens, contexts[i].room), contexts[i].max_depth) for i in known}
        if known:
            self._grow(list(plants.values()), torch.stack([self.states[contexts[i].request] for i in known]))
        return [plants[i].tree() if i in plants else EMPTY for i in range(len(contexts))]

    def _grow(self, plants: Sequence[Plant], h_ND: Tensor) -> None:
        """Level by level, the tips of all contexts together."""
        sizes_N1, ids = size_of(h_ND), self.settings.heads.ids
        u_MD, owners = h_ND / sizes_N1, list(range(len(plants)))  # of every tip, the context that it is of
        for head in range(self.settings.heads.num):
            u_MD, log_p = self._stepped(head, u_MD, [token for plant in plants for token in plant.tokens], sizes_N1[owners])
            best = log_p.topk(self.settings.branches)
            tokens, chances = ids[best.indices].tolist(), best.values.exp().tolist()
            rows, owned, start = list[int](), list[int](), 0
            for at, plant in enumerate(plants):
                stop = start + len(plant.tips)
                if stop > start:
                    rows += [start + row for row in plant.grow(tokens[start:stop], chances[start:stop], self.settings.width)]
                    owned += [at] * len(plant.tips)
                start = stop
            if not rows:
                return
            u_MD, owners = u_MD[rows], owned

    def _stepped(self, head: int, u_MD: Tensor, tokens: Sequence[int], sizes_M1: Tensor) -> tuple[Tensor, Tensor]:
        """(u behind the tips, log p of what follows them)."""
        assert self.rows is not None
        (inner, outer), (rows_RD, scores) = self.cells[self.settings.heads.cell(head)], self.rows
        places = torch.tensor([self.settings.heads.place.get(token, -1) for token in tokens])
        e_MD = torch.where(places[:, None] >= 0, rows_RD[places.clamp_min(0)], 0.0)
        gate_MF, straight_MD = gated(inner(torch.cat([u_MD, e_MD / size_of(e_MD)], -1)), u_MD.shape[-1])
        u_MD = straight_MD + outer(gate_MF)
        return u_MD, scores(u_MD * sizes_M1).log_softmax(-1)

    def observe(self, verified: Sequence[Verified]) -> None:
        for seen in verified:
            if seen.hidden is not None and seen.tokens:
                if self.rows is None:
                    rows_RD = rows_of(self.host, self.settings.heads.ids, device=seen.hidden.device, dtype=seen.hidden.dtype)
                    self.rows = rows_RD, product(rows_RD[: self.settings.num])
                self.states[seen.request] = seen.hidden[seen.last_row].float().cpu()

    def forget(self, request: int) -> None:
        self.states.pop(request, None)
