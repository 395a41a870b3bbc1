"""LocalProcess on another device: weights, pages, logits and draws stay there; tables, the prefix tree and all decisions on the host.

A step in which every sequence generates, chains of guessed tokens included, is one forward pass of fixed shape and one draw, both
replayed (engine.graphs); what comes back is a few numbers per row, with one wait. Other steps issue the same operations one by one.
Wishes that move or truncate the distribution send their rows of logits to the host's sampler, as do the lists of the most likely tokens.

The device never waits for the host: before a draw is read, the next tokens' forward pass is queued behind it, its tokens taken from where they
were drawn. The step that asks for those rows finds them computed; rows of sequences that ended meanwhile are nobody's. Where tokens are guessed
the host must first know them: behind a step with guesses, and before one that is to have some, nothing is computed ahead (engine.rounds).

Everything runs on the CPU too, from the same code: that is how it is tested where there is no card.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.core.schedule import Scheduler
from ponder.engine.attend import Span, in_order
from ponder.engine.attend_device import DeviceAttention
from ponder.engine.draw_device import is_plain
from ponder.engine.graphs import DecodeRunner, DrawRunner
from ponder.engine.jobs import ExtendJob, Track
from ponder.engine.meter import Meter, MeterAhead
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.sampler import Draw, Drawn, draw, most_likely
from ponder.models.decoder import Decoder

Name = tuple[int, int, int]  # of one token's computation: sequence, version of its pages, place


def name_of(span: Span) -> Name:
    return span.sequence.number, span.sequence.version, span.start


@dataclass(frozen=True)
class Ahead:
    """Hidden rows [n, D] that were computed before a step asked for them."""

    hidden: Tensor
    rows: dict[Name, int]

    def of(self, spans: Sequence[Span]) -> dict[int, int]:
        """The row of each span that is here, by the span's place in `spans`."""
        return {i: self.rows[name] for i, span in enumerate(spans) if span.is_single and (name := name_of(span)) in self.rows}


class DeviceProcess(LocalProcess):
    """Role Process (core.roles). Its answers are those of a LocalProcess up to rounding, alone or in a crowd."""

    attention: DeviceAttention
    looks_ahead = True
    ahead: Ahead | None = None
    drawing: Sequence[tuple[ExtendJob, Track]] = ()
    num_ahead = num_met = 0  # rows computed ahead, and those that a step asked for

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings | None = None) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        self.decode = DecodeRunner(decoder, self.attention)
        self.draws = DrawRunner(decoder, self.decode.recorder)

    def _open_attention(self, settings: Settings) -> DeviceAttention:
        if settings.attend is not None:
            raise BadField(f"attention plan {settings.attend.name}: on another device than the CPU every query meets all keys; leave it out")
        return DeviceAttention(
            self.decoder.config, self.pool, num_rows=self.max_rows, is_shared=settings.is_shared, is_native=settings.is_native
        )  # fmt: skip

    def _open_meter(self) -> Meter:
        return MeterAhead(self) if self.looks_ahead else Meter(self)

    def _is_here(self, span: Span) -> bool:
        return self.ahead is not None and name_of(span) in self.ahead.rows

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        ahead, self.ahead = self.ahead, None
        known = {} if ahead is None else ahead.of(spans)
        if ahead is None or not known:
            return self._forward_now(spans, tokens)
        self.num_met += len(known)
        found, at = list(known.values()), list(known)
        rows_ND = ahead.hidden if found == list(range(len(ahead.hidden))) else ahead.hidden[found]
        if len(known) == len(spans):
            return rows_ND
        return self._filled(spans, tokens, rows_ND, at)

    def _filled(self, spans: Sequence[Span], tokens: list[int], known_ND: Tensor, at: Sequence[int]) -> Tensor:
        """Rows of all spans, of which those `at` some places (one token each) are known."""
        starts = list(itertools.accumulate((span.stop - span.start for span in spans), initial=0))
        rest = [i for i in range(len(spans)) if i not in set(at)]
        rows = [row for i in rest for row in range(starts[i], starts[i + 1])]
        others = self._forward_now([spans[i] for i in rest], [tokens[row] for row in rows])
        hidden_TD = torch.empty(len(tokens), others.shape[1], dtype=others.dtype, device=others.device)
        hidden_TD[rows] = others
        hidden_TD[[starts[i] for i in at]] = known_ND
        return hidden_TD

    def _forward_now(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        if all(span.is_single or (span.start >= span.num_prompt and span.parents is None and not span.copies) for span in spans):
            return self.decode.run([single for span in spans for single in span.singles()], tokens)
        plan = self.attention.plan(spans)
        return self.decoder.forward(torch.tensor(tokens, device=self.decoder.device), plan.positions, plan.attend, plan.prompts)

    def _draw(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]:
        plain = [row for row, wish in enumerate(wishes) if is_plain(wish)]
        if len(plain) == len(wishes):
            return self.draws.run(hidden_RD, wishes, self._look_ahead)
        found: dict[int, Drawn] = {}
        for rows, drawn in ((plain, self.draws.run), ([row for row in range(len(wishes)) if row not in plain], self._draw_on_host)):
            if rows:
                found |= dict(zip(rows, drawn(hidden_RD[rows], [wishes[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(wishes))]

    def _extend(self, ready: Sequence[tuple[ExtendJob, Track]]) -> None:
        self.drawing = ready
        super()._extend(ready)
        self.drawing = ()

    def _look_ahead(self, drawn_R4: Tensor) -> None:
        """Queues the forward pass of the tokens just drawn, for those who go on and whose next page is there. Not where guesses are in the way."""
        if not self.looks_ahead or not self.drawing or not self.rounds.may_look_ahead:
            return
        rows, spans = {}, []
        for row, (job, track) in enumerate(self.drawing):
            if job.num_left > 1 and track.pages is not None and track.pages.reserve(track.num_computed + 1):
                rows[track.pages.number] = row
                spans.append(Span(track.pages, track.num_computed, track.num_computed + 1, track.num_prompt))
        if spans:
            spans = in_order(spans)
            tokens = drawn_R4[:, 0].long()
            order = [rows[span.sequence.number] for span in spans]
            hidden = self.decode.run(spans, tokens if order == list(range(len(tokens))) else tokens[order])
            self.num_ahead += len(spans)
            self.ahead = Ahead(hidden, {name_of(span): i for i, span in enumerate(spans)})

    def _draw_and_go_on(self, hidden_RD: Tensor, spans: Sequence[Span], wishes: Sequence[Draw]) -> Tensor:
        """Draws a token of each row and, before it is read, computes its own row at the same place: how steps follow each other here."""
        found: list[Tensor] = []
        self.draws.run(hidden_RD, wishes, lambda drawn_R4: found.append(self.decode.run(spans, drawn_R4[:, 0].long())))
        return found[0]

    def _draw_on_host(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]:
        return draw(self.decoder.logits(hidden_RD).cpu(), wishes)

    def _draw_shown(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> tuple[list[Drawn], Tensor]:
        logits_RV = self.decoder.logits(hidden_RD).cpu()
        return draw(logits_RV, wishes), logits_RV

    def _most_likely(self, hidden_RD: Tensor, num: int) -> tuple[list[list[int]], list[list[float]]]:
        return most_likely(self.decoder.logits(hidden_RD).cpu(), num)

    def _log_p(self, hidden_RD: Tensor, tokens: Tensor) -> list[float]:
        logits_RV = self.decoder.logits(hidden_RD).double()
        wanted_R = logits_RV.gather(1, tokens.to(logits_RV.device)[:, None])[:, 0]
        return (wanted_R - logits_RV.logsumexp(-1)).tolist()  # type: ignore[no-any-return]
