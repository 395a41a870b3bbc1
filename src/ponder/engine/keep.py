"""Carries out a cache policy (core.keeping): what it must see is kept while tokens are computed, and keys are dropped when it says so.

A `Record` belongs to one sequence of pages. While a prompt is read its rows are summed into columns, or its last queries kept; behind
it queries are kept until the trigger fires. What was kept is a function of the tokens before alone.

The `Shelf` holds sequences that have dropped keys, in case an ask goes on from there: the prefix store cannot, because their pages
no longer lie at their tokens' places. They share pages with whoever computed them, and nothing that others see is ever changed:
a page with other readers is copied before keys leave it.

Shapes: L layers, K key heads, H query heads, N slots of a head, E head width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ponder.core.evidence import View, columns_of
from ponder.core.formats import ModelConfig
from ponder.core.keeping import Policy, chosen
from ponder.engine.attend import Span, StepPlan
from ponder.engine.kv import common_len
from ponder.engine.pages import PAGE, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.models.decoder import Attend

NUM_SHELVED = 1024  # sequences


@dataclass(eq=False)
class Record:
    """What is known of a sequence. due: tokens computed when keys are next dropped; last: when they last were."""

    num_prompt: int
    due: int | None
    last: int = 0
    columns: list[Tensor] = field(default_factory=list)  # per layer float64 [K, N]
    queries: list[list[tuple[int, Tensor]]] = field(default_factory=list)  # per layer: first position, rows [n, H, E]

    def copy(self, num_tokens: int) -> "Record":
        """Of a fork that has num_tokens."""
        cut = [[(start, rows[: num_tokens - start]) for start, rows in some if start < num_tokens] for some in self.queries]
        return replace(self, columns=[x.clone() for x in self.columns], queries=cut)


@dataclass
class Kept:
    """What policies dropped and kept so far; bytes are those of pages."""

    num_times: int = 0
    keys_seen: int = 0
    keys_kept: int = 0
    bytes_seen: int = 0
    bytes_kept: int = 0


class Keeper:
    """A policy at work on the sequences of one pool."""

    def __init__(self, policy: Policy, config: ModelConfig, pool: Pool) -> None:
        self.policy, self.config, self.pool = policy, config, pool
        self.needs = policy.scorer.needs
        self.records: dict[Pages, Record] = {}
        self.kept = Kept()

    def begin(self, pages: Pages, num_prompt: int) -> None:
        """A sequence of which `first_row(num_prompt)` tokens at most are computed."""
        rows: list[list[tuple[int, Tensor]]] = [[] for _ in range(self.config.num_layers)]
        self.records[pages] = Record(num_prompt, num_prompt, 0, [], rows)

    def first_row(self, num_prompt: int) -> int:
        """The first token of a prompt whose row the policy must see: those before may have been computed by somebody else."""
        if self.needs.has_columns:
            return 0
        return max(0, num_prompt - max(1, self.needs.num_rows))

    def watched(self, plan: StepPlan, spans: Sequence[Span]) -> Attend:
        """The plan's attend, which also keeps what the policy must see."""
        if self.needs.is_nothing:
            return plan.attend
        starts, at = [], 0
        for span in spans:
            starts.append(at)
            at += span.stop - span.start

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            out_TX = plan.attend(layer, q_THE, k_TKE, v_TKE)
            for span, lo in zip(spans, starts):
                self._see(layer, span, q_THE[lo : lo + span.stop - span.start])
            return out_TX

        return attend

    def is_due(self, pages: Pages) -> bool:
        record = self.records[pages]
        return record.due is not None and pages.num_tokens >= record.due

    def drop_keys(self, pages: Pages) -> bool:
        """Does what the policy says now. False, and nothing changed, when there are no pages to move shared keys to."""
        record = self.records[pages]
        budget = self.policy.budget(record.num_prompt)
        num = pages.num_tokens - torch.from_numpy(pages.dropped).long()  # [L, K]
        if int(num.sum()) > budget * num.numel() and not self._apply(pages, record, num, budget):
            return False
        record.last = pages.num_tokens
        num_held = pages.num_tokens - int(pages.dropped.sum()) // num.numel()
        record.due = self.policy.trigger.next(record.last, num_prompt=record.num_prompt, num_held=num_held, budget=budget)
        if record.due is None or not self.needs.has_columns:
            record.columns = []
        record.queries = [[] for _ in record.queries]
        return True

    # what the policy sees

    def _see(self, layer: int, span: Span, q_NHE: Tensor) -> None:
        record = self.records[span.sequence]
        if record.due is None:
            return
        first = max(span.start, record.due - self.needs.num_rows) if not self.needs.has_columns else span.start
        if first >= span.stop:
            return
        record.queries[layer].append((first, q_NHE[first - span.start :].clone()))
        if self.needs.has_columns and span.start < record.num_prompt:
            self._sum_columns(record, layer, span.sequence, span.stop)

    def _sum_columns(self, record: Record, layer: int, pages: Pages, num_tokens: int) -> None:
        """Adds the waiting rows of a layer to its columns."""
        (start, *_), rows = record.queries[layer][0], torch.cat([rows for _, rows in record.queries[layer]])
        keys, _, positions = self._slots(pages, layer, num_tokens)
        window, cap = self.config.window(layer), self.config.attn_softcap
        decay, stop = self.needs.decay, start + len(rows)
        end = record.num_prompt if start < record.num_prompt else stop  # as if the prompt had come at once
        factors = None if decay == 1 else decay ** torch.arange(end - 1 - start, end - 1 - stop, -1, dtype=torch.float64)
        fresh = columns_of(rows, keys, positions, start, window=window, softcap=cap, factors=factors)
        if len(record.columns) <= layer:
            record.columns.append(fresh)
        else:
            old = record.columns[layer]
            fresh[:, : old.shape[1]] += old if start < record.num_prompt else old * decay ** len(rows)
            record.columns[layer] = fresh
        record.queries[layer] = []

    def _slots(self, pages: Pages, layer: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [K, N, E] and positions [K, N] of a layer, of which -1 hold nothing."""
        num_K = num_tokens - torch.from_numpy(pages.dropped[layer]).long()
        table = pages.table[layer, :, : -(-int(num_K.max()) // PAGE)]
        numbers = self.pool.on_device(table)
        keys, values = self.pool.read(numbers)
        longest = int(num_K.max())
        positions = self.pool.positions[numbers].flatten(1).long()
        positions = positions.masked_fill(torch.arange(positions.shape[1]) >= num_K[:, None], -1)
        return keys[:, :longest], values[:, :longest], positions[:, :longest]

    def _view(self, pages: Pages, record: Record, layer: int) -> View:
        keys, values, positions = self._slots(pages, layer, pages.num_tokens)
        queries = columns = None
        if self.needs.num_rows:
            queries = torch.cat([rows for _, rows in record.queries[layer]])[-self.needs.num_rows :]
        if self.needs.has_columns:
            columns = record.columns[layer]
        return View(
            layer=layer, num_layers=self.config.num_layers, num_tokens=pages.num_tokens, keys=keys, values=values, positions=positions,
            queries=queries, columns=columns, window=self.config.window(layer), softcap=self.config.attn_softcap,
        )  # fmt: skip

    # what becomes of it

    def _apply(self, pages: Pages, record: Record, num: Tensor, budget: int) -> bool:
        layers = range(self.config.num_layers)
        if self.needs.has_columns and record.queries[0]:
            for layer in layers:
                self._sum_columns(record, layer, pages, pages.num_tokens)
        scores = torch.full((*num.shape, int(num.max())), -torch.inf, dtype=torch.float64)
        for layer in layers:
            view = self._view(pages, record, layer)
            scores[layer, :, : view.keys.shape[1]] = self.policy.scorer.score(view, budget).masked_fill(~view.held, -torch.inf)
        counts = self.policy.allocator.allot(scores, num, budget)
        if _num_moved(pages, counts) > self.pool.num_free:
            return False
        bytes_before = int(pages.num_pages.sum()) * self.pool.page_nbytes
        for layer in layers:
            kept = [chosen(scores[layer, head], int(counts[layer, head])) for head in range(num.shape[1])]
            others = self.policy.evictor.evict(self._view(pages, record, layer), kept)
            for head, slots in enumerate(kept):
                if len(slots) == num[layer, head]:
                    continue
                pages.keep(layer, head, slots.numpy())
                if others is not None:
                    pages.rewrite(layer, head, *others[head])
            if record.columns:
                record.columns[layer] = _gathered(record.columns[layer], kept)
        done = self.kept
        done.num_times += 1
        done.keys_seen += int(num.sum())
        done.keys_kept += int(counts.sum())
        done.bytes_seen += bytes_before
        done.bytes_kept += int(pages.num_pages.sum()) * self.pool.page_nbytes
        return True


def _num_moved(pages: Pages, counts: Tensor) -> int:
    """Pages that heads need whose keys others read too, when they keep `counts` [L, K]."""
    num_pages = -(-counts.numpy() // PAGE)
    first = np.arange(pages.table.shape[2]) < num_pages[..., None]
    is_shared = ((pages.pool.refs[pages.table] > 1) & first).any(-1)
    return int(num_pages[is_shared].sum())


def _gathered(columns: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Columns [K, N] of the slots that stay, zeros behind them."""
    found = columns.new_zeros(len(kept), max(len(slots) for slots in kept))
    for head, slots in enumerate(kept):
        found[head, : len(slots)] = columns[head, slots]
    return found


@dataclass(eq=False)
class Shelved:
    """A sequence at rest. `hidden`: final hidden row [D] of its last token; `paid` as of engine.kv.Node."""

    pages: Pages
    record: Record
    hidden: Tensor | None = None
    paid: set[int] = field(default_factory=set)


class Shelf:
    """Sequences that have dropped keys, by prompt and by what came after; the least recently used go first."""

    def __init__(self) -> None:
        self.prompts: dict[tuple[int, ...], dict[tuple[int, ...], Shelved]] = {}
        self.order: OrderedDict[tuple[tuple[int, ...], tuple[int, ...]], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.order)

    def put(
        self, prompt: tuple[int, ...], after: tuple[int, ...], *, pages: Pages, record: Record, hidden: Tensor | None = None
    ) -> Shelved:  # fmt: skip
        """Takes a fork of `pages`, of the prompt and the tokens after it; what is there already stays."""
        shelved = self.prompts.setdefault(prompt, {}).get(after)
        num_tokens = len(prompt) + len(after)
        if shelved is None:
            fork = pages.fork()
            fork.num_tokens = num_tokens
            shelved = self.prompts[prompt][after] = Shelved(fork, record.copy(num_tokens))
        if hidden is not None:
            shelved.hidden = hidden
        self.order[prompt, after] = None
        self.order.move_to_end((prompt, after))
        if len(self.order) > NUM_SHELVED:
            self.drop_one()
        return shelved

    def find(self, prompt: tuple[int, ...], after: tuple[int, ...]) -> tuple[Shelved, int] | None:
        """Where an ask for the prompt and the tokens after it goes on: what is shelved, and how many tokens of it are of use.

        All tokens are of use only where the last hidden row is there; keys that were dropped since cannot come back.
        """
        best: tuple[int, bool, tuple[int, ...]] | None = None
        wanted = len(prompt) + len(after)
        for key, shelved in self.prompts.get(prompt, {}).items():
            num = len(prompt) + common_len(key, after)
            is_whole = num == wanted == len(prompt) + len(key) and shelved.hidden is not None
            num = num if is_whole else min(num, wanted - 1)
            if num >= max(shelved.record.last, len(prompt)) and (best is None or (num, is_whole) > best[:2]):
                best = (num, is_whole, key)
        if best is None:
            return None
        self.order.move_to_end((prompt, best[2]))
        return self.prompts[prompt][best[2]], best[0]

    def drop_one(self) -> bool:
        if not self.order:
            return False
        (prompt, after), _ = self.order.popitem(last=False)
        self.prompts[prompt].pop(after).pages.release()
        if not self.prompts[prompt]:
            del self.prompts[prompt]
        return True
