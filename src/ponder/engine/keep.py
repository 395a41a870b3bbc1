"""Carries out a cache policy (core.keeping): what it must see is kept while tokens are computed, and keys are dropped when it says so.

A `Record` belongs to one sequence of pages. While a prompt is read its rows are summed into columns; behind it queries are kept
until the trigger fires. What was kept is a function of the tokens before alone.

The `Shelf` holds sequences that have dropped keys, in case an ask goes on from there: the prefix store cannot, because their pages
no longer lie at their tokens' places. They share pages with whoever computed them, and nothing that others see is ever changed:
a page with other readers is copied before keys leave it.

Shapes: L layers, K key heads, H query heads, N slots of a head, E head width.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ponder.core.evidence import QUANTUM, View, columns_of
from ponder.core.formats import ModelConfig
from ponder.core.keeping import Policy, chosen
from ponder.core.rest import Query, Rest, met
from ponder.engine.attend import Span, StepPlan, merge
from ponder.engine.kv import common_len
from ponder.engine.pages import PAGE, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.models.decoder import Attend
from ponder.models.rotary import frequencies, rotary_kind, turned
from ponder.native.attention import Kernel
from ponder.native.columns import Rows, add_columns

NUM_SHELVED = 1024  # sequences


@dataclass(eq=False)
class Record:
    """What is known of a sequence. due: tokens computed when keys are next dropped; last: when they last were."""

    num_prompt: int
    due: int | None
    last: int = 0
    columns: list[Tensor] = field(default_factory=list)  # per layer float64 [K, N]
    rows: list[list[tuple[int, Tensor, Tensor | None]]] = field(default_factory=list)  # per layer: first position, q [n, H, E], lse [n, H]
    readings: list[list[tuple[int, Tensor]]] = field(default_factory=list)  # per layer: first position, float32 [n, K]; from the first token on
    rests: list[list[Rest]] = field(default_factory=list)  # per layer: what is met beside the pages

    def copy(self, num_tokens: int) -> "Record":
        """Of a fork that has num_tokens."""
        cut = [
            [(start, q[: num_tokens - start], None if lse is None else lse[: num_tokens - start]) for start, q, lse in some if start < num_tokens]
            for some in self.rows
        ]
        readings = [[(start, said[: num_tokens - start]) for start, said in some if start < num_tokens] for some in self.readings]
        rests = [list(some) for some in self.rests]
        return replace(self, columns=[x.clone() for x in self.columns], rows=cut, readings=readings, rests=rests)

    def blank(self) -> "Record":
        """Of a span of guesses, which reads as the sequence does and whose rows may never have been."""
        return replace(self, columns=[], rows=[[] for _ in self.rows], readings=[[] for _ in self.readings])

    def add_row(self, guessed: "Record", place: int) -> None:
        """Takes a row that was seen of a guess that is now kept."""
        for own, some in zip(self.rows, guessed.rows, strict=True):
            for start, q, lse in some:
                if start <= place < start + len(q):
                    at = slice(place - start, place - start + 1)
                    own.append((place, q[at], None if lse is None else lse[at]))
        for said, guesses in zip(self.readings, guessed.readings, strict=True):
            said += [(place, rows[place - start : place - start + 1]) for start, rows in guesses if start <= place < start + len(rows)]


@dataclass
class Kept:
    """What a policy saw and kept so far; bytes are those of pages, and of what evictors put elsewhere in memory and outside of it.

    per_head: int64 [L, K], keys kept by each.
    """

    per_head: Tensor
    num_times: int = 0
    keys_seen: int = 0
    keys_kept: int = 0
    bytes_seen: int = 0
    bytes_kept: int = 0
    bytes_rest: int = 0
    bytes_away: int = 0

    def __str__(self) -> str:
        share = 100 * self.keys_kept / max(1, self.keys_seen)
        rest = f", the rest {self.bytes_rest / 1e6:.1f} MB in memory and {self.bytes_away / 1e6:.1f} MB in files" if self.bytes_rest else ""
        heads = self.per_head / max(1, self.keys_kept) * self.per_head.numel()
        return (
            f"kept {share:.0f} % of keys, {self.bytes_kept / 1e6:.1f} of {self.bytes_seen / 1e6:.1f} MB{rest}; "
            f"heads {heads.min():.2f} to {heads.max():.2f} of the mean"
        )  # fmt: skip


class Keeper:
    """A policy at work on the sequences of one pool."""

    def __init__(self, policy: Policy, config: ModelConfig, pool: Pool, kernel: Kernel | None) -> None:
        self.policy, self.config, self.pool, self.kernel = policy, config, pool, kernel
        self.needs = policy.scorer.needs
        self.kept = Kept(torch.zeros(config.num_layers, config.num_kv_heads, dtype=torch.int64))

    def begin(self, num_prompt: int) -> Record:
        """Of a sequence of which `first_row(num_prompt)` tokens at most are computed."""
        rows, readings = ([[] for _ in range(self.config.num_layers)] for _ in range(2))
        return Record(num_prompt, self.policy.due_in_prompt(0, num_prompt), rows=rows, readings=readings)

    def first_row(self, num_prompt: int) -> int:
        """The first token of a prompt whose row the policy must see: those before may have been computed by somebody else."""
        due = self.policy.due_in_prompt(0, num_prompt)
        return min(self.needs.first_row(due), due - 1)

    def watched(self, plan: StepPlan, spans: Sequence[Span], records: Sequence[Record | None]) -> Attend:
        """The plan's attend, which also keeps what the policy must see of the spans that have a record."""
        wanted, resting, at = [], [], 0
        for span, record in zip(spans, records, strict=True):
            stop = at + span.stop - span.start
            first = span.stop if record is None or record.due is None else max(span.start, self.needs.first_row(record.due))
            if record is not None and first < span.stop:
                wanted.append((span, record, at + first - span.start, stop))
            if record is not None and record.rests:
                resting.append((span, record, at, stop))
            at = stop
        if not wanted and not resting:
            return plan.attend

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            out_TX, lse_TH = plan.attend_with_lse(layer, q_THE, k_TKE, v_TKE)
            for span, record, lo, hi in wanted:
                lse = None if lse_TH is None or bool(lse_TH[lo, 0].isnan()) else lse_TH[lo:hi]
                tail = replace(span, start=span.stop - (hi - lo))
                self.see(record, layer, tail, q_THE=q_THE[lo:hi], k_TKE=k_TKE[lo:hi], v_TKE=v_TKE[lo:hi], lse_TH=lse)
            for span, record, lo, hi in resting:
                read = None if lse_TH is None else (out_TX[lo:hi], lse_TH[lo:hi])
                out_TX[lo:hi] = self._with_rests(layer, span, record, q_NHE=q_THE[lo:hi], read=read)
            return out_TX

        return attend

    def see(
        self, record: Record, layer: int, span: Span, *, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, lse_TH: Tensor | None
    ) -> None:  # fmt: skip
        """Keeps what the policy must see of the tokens of `span`, whose keys are in their pages; lse: from the compiled kernel."""
        if self.needs.reader is not None:
            record.readings[layer].append((span.start, self._reading(layer, span.start, (q_THE, k_TKE, v_TKE))))
        first = max(span.start, self.needs.first_column_row(record.due or 0))
        if first >= span.stop:
            return
        lse = None if lse_TH is None else lse_TH[first - span.start :]
        if first < record.num_prompt:
            self._sum_columns(record, layer, span.sequence, [(first, q_THE[first - span.start :], lse)])
        else:
            record.rows[layer].append((first, q_THE[first - span.start :].clone(), lse))

    def _with_rests(self, layer: int, span: Span, record: Record, *, q_NHE: Tensor, read: tuple[Tensor, Tensor] | None) -> Tensor:
        """What queries read of their pages, [N, H * E], joined with what they read of the rests. read: of the pages, with log-sum-exps."""
        at = torch.arange(span.start, span.stop)
        query = Query(q_NHE=q_NHE, at=at, window=self.config.window(layer), softcap=self.config.attn_softcap)
        if read is None:
            positions, read_slots = self._slots(span.sequence, layer, span.stop)
            own = met(query, *read_slots(), positions)
        else:
            own = read[0].float().unflatten(1, (q_NHE.shape[1], -1)), read[1]
        return merge([own, *(rest.meet(query) for rest in record.rests[layer])])[0].to(q_NHE.dtype).flatten(1)

    def drop_keys(self, pages: Pages, record: Record) -> bool:
        """Does what the policy says now. False, and nothing changed, when there are no pages to move shared keys to."""
        budget = self.policy.budget(record.num_prompt)
        num = pages.num_tokens - torch.from_numpy(pages.dropped).long()  # [L, K]
        if int(num.sum()) > budget * num.numel() and not self._apply(pages, record, num, budget):
            return False
        record.last = pages.num_tokens
        num_held = pages.num_tokens - int(pages.dropped.sum()) // num.numel()
        if record.last < record.num_prompt:
            record.due = self.policy.due_in_prompt(record.last, record.num_prompt)
        else:
            record.due = self.policy.trigger.next(record.last, num_prompt=record.num_prompt, num_held=num_held, budget=budget)
        if record.due is None or self.needs.num_rows is not None:
            record.columns = []
        if record.due is None:
            record.readings = []
        record.rows = [[] for _ in record.rows]
        return True

    # what the policy sees

    def _reading(self, layer: int, start: int, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What the policy makes of tokens from position `start` on."""
        frequency = frequencies(self.config, rotary_kind(self.config, layer))
        q_THE, k_TKE, v_TKE = rows
        back = -torch.arange(start, start + len(q_THE))
        assert self.needs.reader is not None
        return self.needs.reader.read(layer, turned(q_THE, frequency, back), turned(k_TKE, frequency, back), v_TKE)

    def sum_rows(self, record: Record, pages: Pages) -> None:
        """Adds the rows that were kept, up to the last token of `pages`, to the columns."""
        for layer, rows in enumerate(record.rows):
            if rows:
                self._sum_columns(record, layer, pages, rows)
                record.rows[layer] = []

    def _sum_columns(self, record: Record, layer: int, pages: Pages, rows: Sequence[tuple[int, Tensor, Tensor | None]]) -> None:
        """Adds rows, up to the last token, to a layer's columns."""
        start, q_RHE = rows[0][0], torch.cat([q for _, q, _ in rows]) if len(rows) > 1 else rows[0][1]
        num_tokens, decay = start + len(q_RHE), self.needs.decay
        end = record.num_prompt if start < record.num_prompt else num_tokens  # as if the prompt had come at once
        factors = None if decay == 1 else decay ** torch.arange(end - 1 - start, end - 1 - num_tokens, -1, dtype=torch.float32)
        num_K = num_tokens - pages.dropped[layer]
        window, cap = self.config.window(layer), self.config.attn_softcap
        known = [lse for _, _, lse in rows if lse is not None]
        if self.kernel is not None and known:
            lse = torch.cat(known)
            counts = torch.zeros(len(num_K), int(num_K.max()), dtype=torch.int64)
            found = Rows(
                q_RHE=q_RHE, lse_RH=lse, position=start, table=pages.table[layer], num_held=num_K, window=window or 0, softcap=cap or 0.0,
                factors=factors,
            )  # fmt: skip
            add_columns(self.kernel, found, counts)
            fresh = counts.double().mul_(QUANTUM)
        else:
            positions, read = self._slots(pages, layer, num_tokens)
            fresh = columns_of(q_RHE, read()[0], positions, start, window=window, softcap=cap, factors=factors)
        if len(record.columns) > layer:
            old = record.columns[layer]
            fresh[:, : old.shape[1]] += old if start < record.num_prompt else old * decay ** len(q_RHE)
            record.columns[layer] = fresh
        else:
            record.columns.append(fresh)

    def _slots(self, pages: Pages, layer: int, num_tokens: int) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
        """Positions [K, N] of a layer, of which -1 hold nothing, and what reads its keys and values [K, N, E]."""
        num_K = num_tokens - torch.from_numpy(pages.dropped[layer]).long()
        longest = int(num_K.max())
        numbers = self.pool.on_device(pages.table[layer, :, : -(-longest // PAGE)])
        positions = self.pool.positions[numbers].flatten(1)[:, :longest].long()
        positions = positions.masked_fill_(torch.arange(longest) >= num_K[:, None], -1)

        def read() -> tuple[Tensor, Tensor]:
            keys, values = self.pool.read(numbers)
            return keys[:, :longest], values[:, :longest]

        return positions, read

    def _view(self, pages: Pages, record: Record, layer: int) -> View:
        positions, read = self._slots(pages, layer, pages.num_tokens)
        columns, readings = record.columns[layer] if self.needs.has_columns else None, None
        if self.needs.reader is not None:
            readings = torch.cat([said for _, said in record.readings[layer]]).T.gather(1, positions.clamp(min=0))
        return View(
            layer=layer, num_layers=self.config.num_layers, num_tokens=pages.num_tokens, positions=positions, read=read, columns=columns,
            readings=readings,
        )  # fmt: skip

    # what becomes of it

    def _apply(self, pages: Pages, record: Record, num: Tensor, budget: int) -> bool:
        layers = range(self.config.num_layers)
        self.sum_rows(record, pages)
        scores = torch.full((*num.shape, int(num.max())), -torch.inf, dtype=torch.float64)
        for layer in layers:
            view = self._view(pages, record, layer)
            scores[layer, :, : view.positions.shape[1]] = self.policy.scorer.score(view, budget).masked_fill(~view.held, -torch.inf)
        counts = self.policy.allocator.allot(scores, num, budget)
        if _num_moved(pages, counts) > self.pool.num_free:
            return False
        bytes_before = int(pages.num_pages.sum()) * self.pool.page_nbytes
        for layer in layers:
            kept = [chosen(scores[layer, head], int(counts[layer, head])) for head in range(num.shape[1])]
            view = self._view(pages, record, layer)
            others, rest = self.policy.evictor.evict(view, kept), self.policy.evictor.rest(view, kept)
            if rest is not None:
                record.rests = record.rests or [[] for _ in layers]
                record.rests[layer].append(rest)
                self.kept.bytes_rest += rest.nbytes
                self.kept.bytes_away += rest.nbytes_away
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
        done.per_head += counts
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
