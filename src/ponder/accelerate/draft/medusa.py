"""Small heads on the target's own hidden state guess the next few tokens at once; their likeliest combinations are a tree.

Paper      Cai et al. 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads" (arXiv:2401.10774), Medusa-1
Equation   chance of a path x_1..x_d = prod_k p_k(x_k | h, x), h the state that the newest token x was drawn from (draft/heads)
Shapes     hidden [N, D] -> trees of at most num_tokens tokens, as deep as there are heads
Guarantee  exact (a drafter changes no answer); with an acceptor that is
Cost       for SmolLM2 with 3 heads over 4,096 tokens 7 MB, and 10 M products a draft, a tenth of a forward pass; training once, minutes.
Choose     free text, where nothing repeats, at few sequences at once. Heads know one model: train them on the one that they are to serve.
Differs    the tree is made anew for every state out of the `num_tokens` likeliest combinations of each head's `branches` best, likeliest
           first; the paper's has a fixed shape of 63. Heads score a short list of frequent tokens, with the target's own rows of them,
           and also read the newest token, as in Ankner et al. 2024 (Hydra, arXiv:2402.05109), where each reads all before it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.accelerate.draft.heads import Heads
from ponder.core.draft import EMPTY, ROOT, Context, Host, Needs, Scope, Tree, Verified
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class Medusa:
    heads: Heads
    num_tokens: int = 16  # most tokens of a draft
    branches: int = 6  # of each head's tokens, the likeliest that count

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs(hidden=True)

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or not 1 <= self.branches <= len(self.heads.ids):
            raise BadField(
                f"medusa num_tokens={self.num_tokens}, branches={self.branches}: at least 1, and no more branches than tokens that heads score"
            )

    def open(self, host: Host) -> "Heading":
        """Raises BadField for a model of another width or vocabulary."""
        if host.dim != self.heads.rows.shape[1] or host.vocab_size <= int(self.heads.ids.max()):
            raise BadField(
                f"heads of {self.heads.model_id}, width {self.heads.rows.shape[1]}: this model has width {host.dim} and {host.vocab_size} tokens; "
                "train heads on it (`ponder train-heads`)"
            )
        return Heading(self)


class Heading:
    """Drafting of Medusa. states: by request, what the newest token was drawn from."""

    def __init__(self, settings: Medusa) -> None:
        self.settings = settings
        self.states: dict[int, Tensor] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        trees = [EMPTY] * len(contexts)
        known = [i for i, context in enumerate(contexts) if context.request in self.states]
        if known:
            states_ND = torch.stack([self.states[contexts[i].request] for i in known])
            newest = [contexts[i].tokens[-1] for i in known]
            best = self.settings.heads.log_p(states_ND, newest).topk(self.settings.branches)
            tokens_NKB, chances_NKB = self.settings.heads.ids[best.indices].tolist(), best.values.exp().tolist()
            for i, tokens_KB, chances_KB in zip(known, tokens_NKB, chances_NKB, strict=True):
                room, depth = min(self.settings.num_tokens, contexts[i].room), contexts[i].max_depth
                trees[i] = combined(tokens_KB[:depth], chances_KB[:depth], room)
        return trees

    def observe(self, verified: Sequence[Verified]) -> None:
        for seen in verified:
            if seen.hidden is not None and seen.tokens:
                self.states[seen.request] = seen.hidden[seen.last_row].clone()

    def forget(self, request: int) -> None:
        self.states.pop(request, None)


def combined(tokens_KB: Sequence[Sequence[int]], chances_KB: Sequence[Sequence[float]], room: int) -> Tree:
    """The `room` paths with the largest product of chances, largest first; level k of the tree is a token of head k."""
    heap = [(-chance, 0, branch, ROOT) for branch, chance in enumerate(chances_KB[0])]
    heapq.heapify(heap)
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    while heap and len(tokens) < room:
        path, level, branch, parent = heapq.heappop(heap)
        place = len(tokens)
        tokens.append(tokens_KB[level][branch])
        parents.append(parent)
        chances.append(chances_KB[level][branch])
        if level + 1 < len(tokens_KB):
            for following, chance in enumerate(chances_KB[level + 1]):
                heapq.heappush(heap, (path * chance, level + 1, following, place))
    return Tree(tuple(tokens), tuple(parents), None, tuple(chances))
