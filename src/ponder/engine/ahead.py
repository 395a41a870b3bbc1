"""How a prompt would go on, as far as a cache policy must see: a draft is written, the model reads it, and its attention is summed.

What is written leaves no trace but in the columns of the prompt's keys: it lies in a branch of the prompt's pages, which is then freed. The
draft is the most likely continuation, token by token: a function of the prompt alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.asks import GREEDY
from ponder.core.draft import ITSELF, Context, Runner
from ponder.engine.attend import Span
from ponder.engine.keep import Keeper, Record
from ponder.engine.pages import Sequence as Pages
from ponder.engine.runners import Lender

Forward = Callable[[Sequence[Span], list[int]], Tensor]


@dataclass(frozen=True)
class Ahead:
    """What looks ahead for one process. runner None: the model drafts for itself."""

    keeper: Keeper
    lender: Lender
    runner: Runner | None

    def look(self, pages: Pages, record: Record, prompt: list[int], hidden_D: Tensor) -> int | None:
        """Adds to the record's columns what the draft sees of the prompt, whose last hidden row is given. How many tokens it was, or None
        where there are no pages for it."""
        num = len(prompt)
        most = min(self.keeper.needs.num_ahead, self.lender.decoder.config.context_len - num)
        branch = pages.branch()
        if most < 1 or not self.lender.take(branch, num + most):
            branch.release()
            return 0 if most < 1 else None
        drafted = [] if self.runner is None else self._drafted(self.runner, prompt, most)
        seen = record.copy(num)
        if self.runner is None:
            while len(drafted) < most:
                token = int(self.lender.decoder.logits(hidden_D[None]).argmax())
                drafted.append(token)
                hidden_D = self._read(branch, seen, [token], num)[-1]
                if token in self.lender.tokenizer.eos_ids:
                    break
        elif drafted:
            self._read(branch, seen, drafted, num)
        if drafted:
            self.keeper.sum_rows(seen, branch)
            record.columns = [columns[:, :num] for columns in seen.columns]
        branch.release()
        return len(drafted)

    def _read(self, branch: Pages, record: Record, tokens: list[int], num_prompt: int) -> Tensor:
        """Final hidden rows of the branch's next tokens."""
        spans = [Span(branch, branch.num_tokens, branch.num_tokens + len(tokens), num_prompt)]
        plan = self.lender.attention.plan(spans)
        hidden_TD = self.lender.decoder.forward(torch.tensor(tokens), plan.positions, self.keeper.watched(plan, spans, [record]))
        branch.num_tokens += len(tokens)
        return hidden_TD

    def _drafted(self, runner: Runner, prompt: list[int], most: int) -> list[int]:
        """By another model; fewer where its context ends."""
        context = Context(
            request=0, tokens=prompt, num_prompt=len(prompt), room=most, max_depth=most, seed=0, sampling=GREEDY,
        )  # fmt: skip
        drafted: list[int] = []
        while len(drafted) < most and not (drafted and drafted[-1] in self.lender.tokenizer.eos_ids):
            (guess,) = runner.guess([context], [drafted])
            if guess is None:
                break
            drafted.append(guess.token)
        runner.forget(0)
        return drafted


def ahead_of(keeper: Keeper, lender: Lender) -> Ahead | None:
    """What looks ahead for a keeper's policy; None where it asks for nothing."""
    needs = keeper.needs
    if not needs.num_ahead:
        return None
    return Ahead(keeper, lender, None if needs.draft == ITSELF else lender.runner(needs.draft))
