"""One context read once for all cache policies: each question and policy goes on from a fork of the same pages.

What every policy must see is gathered while the context is read; a fork then does exactly what the engine does for an ask of its own
(engine/keep). Only for policies that leave a prompt's computation as it is: those with a `chunk` have to read it themselves.
What a policy wants to see of a prompt's continuation is looked at once for each question, whatever its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.evidence import Needs
from ponder.core.keeping import Policy
from ponder.engine.ahead import ahead_of
from ponder.engine.attend import NativePlan, Span
from ponder.engine.keep import Keeper, Record
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import LocalProcess

CHUNK = 512
TAIL = 64  # tokens of the context that every question reads again, so that windows see their rows
FAR = 1 << 30


@dataclass(eq=False)
class Fork:
    """A sequence of its own. hidden: the row [1, D] that its next token is drawn from."""

    pages: Pages
    hidden: Tensor
    num_prompt: int
    keeper: Keeper | None = None  # of a policy that has dropped keys, and what it keeps beside the pages
    record: Record | None = None

    def fork(self) -> "Fork":
        record = None if self.record is None else self.record.copy(self.pages.num_tokens)
        return Fork(self.pages.fork(), self.hidden, self.num_prompt, self.keeper, record)

    def release(self) -> None:
        self.pages.release()


class Forks:
    """Contexts of one process under several policies."""

    def __init__(self, process: LocalProcess, policies: Sequence[Policy]) -> None:
        self.process = process
        self.parts = (process.decoder.config, process.pool, process.attention.kernel)
        assert not any(policy.chunk for policy in policies)
        self.keepers: dict[Needs, Keeper] = {policy.scorer.needs: Keeper(policy, *self.parts) for policy in policies}
        self.aheads = {need: ahead_of(keeper, process.lender) for need, keeper in self.keepers.items()}
        self.context: list[int] = []  # what the last reading read
        assert all(need.decay == 1 and (need.num_rows or 1) <= TAIL for need in self.keepers)

    def forward(
        self, pages: Pages, tokens: Sequence[int], num_prompt: int, records: dict[Needs, Record] | None = None, under: Fork | None = None
    ) -> Tensor:  # fmt: skip
        """Hidden rows of the next tokens of a sequence. records: what gathers; under: whose policy's keys are met."""
        start = pages.num_tokens
        assert pages.reserve(start + len(tokens)), "kv_bytes is too small"
        span = Span(pages, start, start + len(tokens), num_prompt)
        plan = self.process.attention.plan([span])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not records:
                return plan.attend(layer, q, k, v)
            assert isinstance(plan, NativePlan)
            out, lse = plan.attend_with_lse(layer, q, k, v)
            for need, record in records.items():
                self.keepers[need].see(record, layer, span, q_THE=q, k_TKE=k, v_TKE=v, lse_TH=lse)
            return out

        if under is not None and under.keeper is not None:
            attend = under.keeper.watched(plan, [span], [under.record])
        hidden = self.process.decoder.forward(torch.tensor(tokens), plan.positions, attend, plan.prompts)
        pages.num_tokens = start + len(tokens)
        return hidden

    def read(self, context: Sequence[int]) -> tuple[Pages, dict[Needs, Record]]:
        """Everything but the last TAIL tokens of a context."""
        pages = Pages(self.process.pool)
        records = {need: replace(keeper.begin(FAR), due=FAR) for need, keeper in self.keepers.items()}
        shared = self.context = list(context[:-TAIL])
        for at in range(0, len(shared), CHUNK):
            self.forward(pages, shared[at : at + CHUNK], FAR, records)
        return pages, records

    def ask(self, before: Pages, records: dict[Needs, Record], rest: Sequence[int]) -> tuple[Fork, dict[Needs, Record]]:
        """Goes on with the context's last tokens and a question: a prompt that is read whole."""
        pages, num = before.fork(), before.num_tokens + len(rest)
        mine = {need: replace(record.copy(before.num_tokens), num_prompt=num, due=num) for need, record in records.items()}
        hidden = torch.empty(0)
        for at in range(0, len(rest), CHUNK):
            hidden = self.forward(pages, rest[at : at + CHUNK], num, mine)
        for need, ahead in self.aheads.items():
            if ahead is not None:
                assert ahead.look(pages, mine[need], [*self.context, *rest], hidden[-1]) is not None, "kv_bytes is too small"
        return Fork(pages, hidden[-1:], num), mine

    def under(self, policy: Policy | None, whole: Fork, records: dict[Needs, Record]) -> Fork:
        """A fork of a prompt that goes on with the keys that the policy keeps; None: with all."""
        fork = Fork(whole.pages.fork(), whole.hidden, whole.num_prompt)
        if policy is not None:
            fork.keeper, record = Keeper(policy, *self.parts), records[policy.scorer.needs].copy(whole.num_prompt)
            assert fork.keeper.drop_keys(fork.pages, record)
            fork.record = replace(record, due=None)  # once
        return fork

    def push(self, fork: Fork, tokens: Sequence[int]) -> None:
        """The sequence goes on with `tokens`, whatever it would have said."""
        fork.hidden = self.forward(fork.pages, tokens, fork.num_prompt, under=fork)[-1:]

    def says(self, fork: Fork, tokens: Sequence[int]) -> bool:
        """Whether the likeliest next tokens are these, one after the other; the sequence goes on with them."""
        hidden = self.forward(fork.pages, tokens, fork.num_prompt, under=fork)
        found = self.process.decoder.logits(torch.cat([fork.hidden, hidden[:-1]])).argmax(-1).tolist()
        fork.hidden = hidden[-1:]
        return found == list(tokens)

    def writes(self, fork: Fork, most: int, ends: frozenset[int]) -> list[int]:
        """The likeliest next tokens, up to `most` or the end."""
        tokens: list[int] = []
        while len(tokens) < most:
            token = int(self.process.decoder.logits(fork.hidden).argmax())
            if token in ends:
                break
            tokens.append(token)
            self.push(fork, [token])
        return tokens

    def held_bytes(self, fork: Fork) -> int:
        """Bytes of the pages that the sequence's keys and values take."""
        return int(fork.pages.num_pages.sum()) * self.process.pool.page_nbytes
