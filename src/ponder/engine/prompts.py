"""Prompts before the model reads them: somebody reads all of one as far as a filter (core.pruning) must see, and what it chooses is the prompt.

The reading goes on beside the step loop's own work, a piece in every step, within the step's budget of tokens; jobs whose prompt is
being read wait, with a stand-in of the right length for it. Keys of what was read stay as long as there is room, so that prompts that
begin alike are begun once. What a filter chose is a function of the prompt alone, and is remembered for a while.

Shapes: N tokens, R seen rows, H query heads, K key heads, E head width.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ponder.core.draft import ITSELF
from ponder.core.errors import BadField, PromptTooLong
from ponder.core.keeping import share_of
from ponder.core.pruning import PromptFilter, Seen
from ponder.engine.attend import Attention, Span, slots_of
from ponder.engine.jobs import Job
from ponder.engine.kv import KVStore
from ponder.engine.pages import PAGE, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.runners import Lender
from ponder.models.decoder import Decoder

KV_BYTES = 1 << 29  # bound on keys and values of what is read
NUM_KEPT = 256  # prompts of which it is remembered what was chosen


@dataclass(eq=False)
class Reading:
    """A prompt of which `pages.num_tokens` tokens were read, and who waits for it. queries: of the seen rows, by layer."""

    ids: tuple[int, ...]
    pages: Pages
    jobs: list[Job] = field(default_factory=list)
    queries: dict[int, list[Tensor]] = field(default_factory=dict)


class Prompts:
    """The prompts of a process, as its model meets them. Without a filter, as they are."""

    def __init__(self, chosen: PromptFilter | None, lender: Lender) -> None:
        """Raises BadField for a reader with other tokens, or layers that it does not have."""
        self.filter = chosen
        self.readings: OrderedDict[tuple[int, ...], Reading] = OrderedDict()
        self.kept: OrderedDict[tuple[int, ...], list[int]] = OrderedDict()
        if chosen is None:
            return
        self.decoder: Decoder = lender.decoder if chosen.reader == ITSELF else lender.other(chosen.reader)
        config = self.decoder.config
        self.layers = tuple(chosen.layers(config.num_layers))
        last = self.layers[-1]
        self.pool = Pool((last + 1, config.num_kv_heads, config.head_dim), self.decoder.dtype, KV_BYTES, device=self.decoder.device)
        self.attention = Attention(config, self.pool, is_native=lender.attention.kernel is not None)
        self.store = KVStore(self.pool)

    @property
    def name(self) -> str:
        """What a model's id says of prompts that it does not read whole."""
        if self.filter is None:
            return ""
        settings = ",".join(f"{name}={value}" for name, value in vars(self.filter).items())
        return f"/prompt-{self.filter.name}:{settings}"

    def of(self, ids: list[int]) -> list[int]:
        """The prompt as the model meets it; a stand-in of the same length, its last tokens, while it has not been read. PromptTooLong."""
        num = self._num_kept(len(ids))
        if num >= len(ids):
            return ids
        limit = min(self.decoder.config.context_len, self.pool.num_pages // self.pool.heads * PAGE)
        if len(ids) > limit:
            raise PromptTooLong(f"prompt of {len(ids)} tokens: who reads it for {self._filter.name} can hold {limit}; shorten the prompt")
        return self.kept.get(tuple(ids), ids[-num:])

    def hold(self, ids: list[int], job: Job) -> None:
        """Notes that a job waits for its prompt, if it has to."""
        key = tuple(ids)
        if self._num_kept(len(ids)) >= len(ids) or key in self.kept:
            return
        if key not in self.readings:
            self.readings[key] = Reading(key, Pages(self.pool))
        self.readings[key].jobs.append(job)

    def is_read(self, job: Job) -> bool:
        return not any(job in reading.jobs for reading in self.readings.values())

    def forget(self, job: Job) -> None:
        """The job is over: what nobody else waits for is not read on."""
        for reading in list(self.readings.values()):
            if job in reading.jobs:
                reading.jobs.remove(job)
                if not reading.jobs:
                    self._end(reading)

    def drop_cache(self) -> None:
        """Forgets what nobody waits for."""
        self.kept.clear()
        while self.filter is not None and self.store.evict():
            pass
        if self.filter is not None:
            self.pool.trim(at_least=1)

    def read(self, room: int) -> list[tuple[Job, int, float]]:
        """Reads on, at most `room` tokens; returns who is to pay for how many, and at how many earlier tokens on average."""
        paid = []
        while room > 0 and self.readings:
            reading = next(iter(self.readings.values()))
            if not reading.queries:
                self._begin(reading)
            start = reading.pages.num_tokens
            stop = min(start + room, len(reading.ids))
            self._forward(reading, start, stop)
            paid.append((reading.jobs[0], stop - start, (start + 1 + stop) / 2))
            room -= stop - start
            if stop == len(reading.ids):
                self._choose(reading)
        return paid

    def flops(self, num_tokens: int, context_len: float) -> float:
        """As engine.process counts them, of the layers that a reader computes."""
        config, num_layers = self.decoder.config, self.layers[-1]
        attention = 4.0 * config.num_heads * config.head_dim * context_len
        projection = 2.0 * config.dim * config.head_dim * (config.num_heads + 2 * config.num_kv_heads)
        rest = 2.0 * config.dim * (config.num_heads * config.head_dim + 3 * config.ffn_dim)
        return num_tokens * (num_layers * (attention + projection + rest) + projection)

    @property
    def _filter(self) -> PromptFilter:
        if self.filter is None:
            raise BadField("prompts without a filter are not read beforehand")
        return self.filter

    def _num_kept(self, num: int) -> int:
        return num if self.filter is None else kept_of(self.filter, num)

    def _begin(self, reading: Reading) -> None:
        """Takes what is stored of the prompt's beginning, or nothing where that leaves no room for the rest."""
        num = len(reading.ids)
        found = self.store.find(reading.ids[: max(0, num - self._filter.num_rows)])
        pages = Pages(self.pool, self.store.pages(found), found.num_tokens)
        while not pages.reserve(num) and self.store.evict():
            pass
        if not pages.reserve(num):
            pages.release()
            pages = Pages(self.pool)
            pages.reserve(num)  # alone it fits, as `of` has seen
        reading.pages, reading.queries = pages, {layer: [] for layer in self.layers}

    def _forward(self, reading: Reading, start: int, stop: int) -> None:
        num, last, decoder = len(reading.ids), self.layers[-1], self.decoder
        first = max(start, num - self._filter.num_rows)
        span = Span(reading.pages, start, stop, num)
        plan = self.attention.plan([span])

        def note(layer: int, q_THE: Tensor) -> None:
            if first < stop and layer in reading.queries:
                reading.queries[layer].append(q_THE[first - start :].clone())

        def attend(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            note(layer, q_THE)
            return plan.attend(layer, q_THE, k_TKE, v_TKE)

        x_TD = decoder.embedded(torch.tensor(reading.ids[start:stop], device=decoder.device))
        x_TD = decoder.through(range(last), x_TD, plan.positions, attend, prompts=plan.prompts)
        q_THE, k_TKE, v_TKE = decoder.projected(last, x_TD, plan.positions, plan.prompts)
        note(last, q_THE)
        at, width = torch.from_numpy(slots_of(span)[last]).reshape(-1), self.pool.width
        positions = plan.positions[:, None].expand(k_TKE.shape[:2]).reshape(-1)
        self.pool.write(at, k_TKE.reshape(-1, width), v_TKE.reshape(-1, width), positions)
        reading.pages.num_tokens = stop

    def _choose(self, reading: Reading) -> None:
        """Asks the filter, and tells those who wait."""
        config, num = self.decoder.config, len(reading.ids)
        positions = torch.arange(num)
        seen = []
        for layer in self.layers:
            keys = self.pool.read_keys(self.pool.on_device(reading.pages.table[layer, :, : -(-num // PAGE)]))[:, :num]
            seen.append(Seen(
                layer=layer, num_layers=config.num_layers, queries=torch.cat(reading.queries[layer]), keys=keys, positions=positions,
                window=config.window(layer), softcap=config.attn_softcap,
            ))  # fmt: skip
        places = self._filter.choose(seen, kept_of(self._filter, num))
        kept = [reading.ids[i] for i in places.tolist()]
        self.kept[reading.ids] = kept
        if len(self.kept) > NUM_KEPT:
            self.kept.popitem(last=False)
        for job in reading.jobs:
            for track in job.tracks:
                track.key[: track.num_prompt] = kept
        self.store.put(reading.ids, reading.pages)
        self._end(reading)

    def _end(self, reading: Reading) -> None:
        del self.readings[reading.ids]
        reading.pages.release()


def kept_of(chosen: PromptFilter, num: int) -> int:
    """How many tokens of a prompt of `num` the filter keeps."""
    return min(num, share_of(chosen.keep, num))
