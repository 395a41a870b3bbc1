"""A process whose prompts lose tokens on their way through the layers, as a layer plan (core.pruning) says.

A prompt goes through the layers before the first cut in pieces, as always, beside whatever else runs. With its last token the plan
chooses who goes on behind each cut in turn. Every token of an answer is computed alone: behind each cut the plan chooses again by the
newest token's attention, and tokens of the prompt that had left but are wanted now go on beside it, from where they rest
(engine.thinning). The newest token meets every key that its layer knows. Positions stay as they are.

Shapes: T flat rows, N rows of one sequence, R of them come back, H query heads, K key heads, E head width, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.core.pruning import Seen
from ponder.core.schedule import Scheduler
from ponder.engine.attend import Span, StepPlan, attention_reference
from ponder.engine.jobs import Job, Track
from ponder.engine.keep import Record
from ponder.engine.pages import PAGE
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import Settings
from ponder.engine.shelving_process import ShelvingProcess
from ponder.engine.thinning import LoosePages, Thinned
from ponder.models.decoder import Decoder, rms_norm


@dataclass(eq=False)
class Flight:
    """One sequence on its way through the layers: rows of tokens that come back, then those of its span. back: their places."""

    span: Span
    record: Thinned
    pages: LoosePages
    x_ND: Tensor
    back: list[int] = field(default_factory=list)
    query: Tensor | None = None  # [1, H, E] of the last row, in the stretch's last layer

    @property
    def is_at_end(self) -> bool:
        """Whether the newest token may choose: the prompt's last, or one of the answer's."""
        return self.span.stop >= self.span.num_prompt

    @property
    def is_prompt(self) -> bool:
        return self.span.start < self.span.num_prompt

    def rest(self, number: int) -> None:
        """Its prompt tokens' rows, as they are behind stretch `number`."""
        count = len(self.x_ND) if self.is_prompt else len(self.back)
        self.record.resting[number].update(zip(self.places[:count], self.x_ND))

    @property
    def places(self) -> Sequence[int]:
        """Of all rows."""
        return [*self.back, *(range(self.span.start, self.span.stop) if self.span.at is None else self.span.at)]


class ThinningProcess(ShelvingProcess):
    """Role Process (core.roles). Its answers are the same alone and in a crowd, bit for bit."""

    records: dict[Track, Thinned]  # type: ignore[assignment]

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        assert settings.layers is not None
        self.plan, config = settings.layers, decoder.config
        cuts = [-1, *self.plan.cuts(config.num_layers), config.num_layers - 1]
        if sorted(set(cuts)) != cuts:
            raise BadField(f"layer plan {self.plan.name}: cuts behind layers {cuts[1:-1]} of {config.num_layers}; must rise, and end before the last")
        if config.windows and any(config.window(layer) is not None for layer in range(config.num_layers)):
            raise BadField(f"layer plan {self.plan.name}: {config.arch} has layers that see a window only; leave it out")
        self.stretches = [range(a + 1, b + 1) for a, b in pairwise(cuts)]
        settings_text = ",".join(f"{name}={value}" for name, value in vars(self.plan).items())
        self.model_id += f"/layers-{self.plan.name}:{settings_text}"
        self.kv_bytes = settings.kv_bytes  # bound on what rests, too
        self.num_back = 0  # tokens that came back, counted at each cut
        self.spent: dict[Pages, float] = {}  # of the last step, rows as if each had gone through all layers

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.resting_nbytes

    @property
    def resting_nbytes(self) -> int:
        """Bytes of hidden states at rest, those that forks share counted for each."""
        shelved = (shelved.record for some in self.shelf.prompts.values() for shelved in some.values())
        return sum(record.nbytes for record in (*self.records.values(), *shelved))  # type: ignore[attr-defined]

    def _new_record(self, num_prompt: int) -> Record:
        num = len(self.stretches) - 1
        return Thinned(num_prompt, None, known=[set() for _ in range(num)], resting=[{} for _ in range(num)])

    def _first_row(self, num_prompt: int) -> int:
        return 0

    def _begin(self, job: Job, track: Track, reading: list[tuple[int, ...]]) -> bool:
        if not super()._begin(job, track, reading):
            return False
        if track.num_computed == 0:
            track.pages = LoosePages(self.pool)
        return True

    def _stop(self, track: Track) -> int:
        return track.num_prompt if track.num_computed < track.num_prompt else track.num_computed + 1

    def _keep(self, span: Span, track: Track, hidden_ND: Tensor) -> None:
        track.num_computed = span.sequence.num_tokens = span.stop
        if span.stop >= track.num_prompt:
            self.records[track].last = span.stop
        first = max(span.start, track.num_given - 1) if track.keeps_all else len(track.key) - 1
        if first < span.stop:
            track.hidden.append(hidden_ND[first - span.start :])
        if span.stop in (track.num_prompt, track.num_given):
            self._shelve(track, span.stop, hidden_ND[-1].clone())

    def _book(self, span: Span, job: Job, track: Track) -> None:
        super()._book(span, job, track)
        if span.start >= track.num_seen:
            flops = self.flops(1, (span.start + 1 + span.stop) / 2) * (self.spent[span.sequence] - (span.stop - span.start))
            job.count.flops += flops
            self.count.flops += flops

    def _retire(self, track: Track, *, is_over: bool = True) -> None:
        super()._retire(track, is_over=is_over)
        while self.resting_nbytes > self.kv_bytes and self.shelf.drop_one():
            pass

    # one forward pass, stretch by stretch

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        records = {track.pages: self.records[track] for _, track in self.running}
        nums = [span.stop - span.start for span in spans]
        rows = self.decoder.embedded(torch.tensor(tokens)).split(nums)
        flights = [Flight(span, records[span.sequence], span.sequence, x) for span, x in zip(spans, rows, strict=True)]  # type: ignore[index, arg-type]
        self.spent = dict.fromkeys((flight.pages for flight in flights), 0.0)
        for number, layers in enumerate(self.stretches):
            self._fly(layers, flights)
            if number + 1 < len(self.stretches):
                for flight in flights:
                    flight.rest(number)
                flights = [self._cut(number, layers[-1], flight) for flight in flights if flight.is_at_end]
        hidden_TD = torch.zeros(len(tokens), self.decoder.config.dim, dtype=self.decoder.dtype)
        ends = dict(zip((span.sequence for span in spans), torch.tensor(nums).cumsum(0).tolist()))
        for flight in flights:
            config = self.decoder.config
            hidden_TD[ends[flight.pages] - 1] = rms_norm(flight.x_ND[-1:], self.decoder.norm, config.norm_eps, self.decoder.dtype)[0]
        return hidden_TD

    def _fly(self, layers: range, flights: Sequence[Flight]) -> None:
        """Takes all rows of the flights through a stretch."""
        if not flights:
            return
        plan = self.attention.plan([flight.span for flight in flights])
        attend, positions, prompts = plan.attend, plan.positions, plan.prompts
        if any(flight.back for flight in flights):
            attend = lambda layer, *qkv: self._attend(plan, flights, layer, qkv)
            positions = torch.tensor([place for flight in flights for place in flight.places])
            prompts = prompt_rows(flights)
        nums = [len(flight.x_ND) for flight in flights]

        def noted(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            if layer == layers[-1]:
                for flight, q in zip(flights, q_THE.split(nums), strict=True):
                    flight.query = q[-1:].clone()
            return attend(layer, q_THE, k_TKE, v_TKE)

        x_TD = self.decoder.through(layers, torch.cat([flight.x_ND for flight in flights]), positions, noted, prompts=prompts)
        for flight, x_ND in zip(flights, x_TD.split(nums), strict=True):
            flight.x_ND = x_ND
            self.spent[flight.pages] += len(x_ND) * len(layers) / self.decoder.config.num_layers

    def _cut(self, number: int, layer: int, flight: Flight) -> Flight:
        """What goes on behind a cut. Rows of the prompt rest there first; who is chosen and was not behind it yet goes on from there."""
        record, pages, span = flight.record, flight.pages, flight.span
        num_prompt, known = record.num_prompt, record.known[number]
        here = range(num_prompt) if number == 0 else sorted(record.known[number - 1])
        wanted: Sequence[int] = ()
        if len(known) < len(here):
            num = min(len(here), self.plan.num_kept(number, num_prompt))
            chosen = here if num == len(here) else self._chosen(layer, flight, here, num)
            wanted = [place for place in chosen if place not in known]
        rows = [record.resting[number].pop(place) for place in wanted]
        known.update(wanted)
        pages.shift(self.stretches[number + 1], num_prompt - len(known))
        if flight.is_prompt:
            span = replace(span, start=num_prompt - len(wanted), stop=num_prompt, at=tuple(wanted))
            return Flight(span, record, pages, torch.stack(rows))
        self.num_back += len(wanted)
        return Flight(span, record, pages, torch.cat([*(row[None] for row in rows), flight.x_ND[-1:]]), list(wanted))

    def _chosen(self, layer: int, flight: Flight, here: Sequence[int], num: int) -> list[int]:
        """Places of the `num` prompt tokens, of those that the layer knows, that the plan lets go on."""
        assert flight.query is not None
        config, pages, num_prompt = self.decoder.config, flight.pages, flight.record.num_prompt
        positions, (keys, _) = self._held(pages, layer, flight.span.stop - int(pages.dropped[layer, 0]))
        order = positions.masked_fill(positions >= num_prompt, num_prompt).argsort(stable=True)[: len(here)]
        seen = Seen(
            layer=layer, num_layers=config.num_layers, queries=flight.query, keys=keys[:, order], positions=positions[order],
            softcap=config.attn_softcap,
        )  # fmt: skip
        chosen = [here[i] for i in self.plan.choose(seen, num).tolist()]
        if len(chosen) != num or chosen[-1] != num_prompt - 1:
            raise BadField(f"layer plan {self.plan.name} chose {len(chosen)} tokens up to {chosen[-1:]}: must be {num}, the prompt's last among them")
        return chosen

    def _held(self, pages: LoosePages, layer: int, num: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Positions [N] of a layer's first `num` slots, and their keys and values [K, N, E]."""
        numbers = self.pool.on_device(pages.table[layer, :, : -(-num // PAGE)])
        keys, values = self.pool.read(numbers)
        return self.pool.positions[numbers[0]].flatten()[:num].long(), (keys[:, :num], values[:, :num])

    def _attend(self, plan: StepPlan, flights: Sequence[Flight], layer: int, qkv: tuple[Tensor, ...]) -> Tensor:
        """As the plan's, for rows among which some come back: they are written first, just before their sequence's newest token."""
        q_THE, k_TKE, v_TKE = qkv
        out_TX, own, at, width = q_THE.new_empty(len(q_THE), q_THE[0].numel()), [], 0, self.pool.width
        ways = []
        for flight in flights:
            rows = slice(at, at + len(flight.back))
            own += range(rows.stop, at + len(flight.x_ND))
            at += len(flight.x_ND)
            if flight.back:
                first = flight.span.start - int(flight.pages.dropped[layer, 0])
                slots = slots_before(flight.pages, layer, first, len(flight.back))
                places = torch.tensor(flight.back)
                self.pool.write(
                    slots.reshape(-1), k_TKE[rows].reshape(-1, width), v_TKE[rows].reshape(-1, width),
                    places[:, None].expand_as(slots).reshape(-1),
                )  # fmt: skip
                ways.append((flight, rows, places, first))
        out_TX[own] = plan.attend(layer, q_THE[own], k_TKE[own], v_TKE[own])
        for flight, rows, places, first in ways:
            positions, (keys, values) = self._held(flight.pages, layer, first)
            num_heads, group = len(keys), q_THE.shape[1] // len(keys)
            q_1KME = q_THE[rows].view(len(places), num_heads, group, width).permute(1, 0, 2, 3).reshape(1, num_heads, -1, width)
            mask = torch.where(positions <= places.repeat_interleave(group)[:, None], 0.0, -torch.inf)
            read, _ = attention_reference(q_1KME, keys[None], values[None], mask, softcap=self.decoder.config.attn_softcap)
            out_TX[rows] = read.view(num_heads, len(places), -1).transpose(0, 1).reshape(len(places), -1)
        return out_TX


def slots_before(pages: LoosePages, layer: int, stop: int, num: int) -> Tensor:
    """int64 [num, K]: flat slots of the last `num` before slot `stop` of each head."""
    at = torch.arange(stop - num, stop)
    return torch.from_numpy(pages.table[layer].astype("int64"))[:, at // PAGE].T * PAGE + (at % PAGE)[:, None]


def prompt_rows(flights: Sequence[Flight]) -> list[tuple[int, int]]:
    """(start, stop) of rows that are of prompts."""
    found, at = [], 0
    for flight in flights:
        num = len(flight.x_ND) if flight.is_prompt else len(flight.back)
        found.append((at, at + num))
        at += len(flight.x_ND)
    return [(start, stop) for start, stop in found if start < stop]
