"""LocalProcess on another device: weights, pages, logits and draws stay there; tables, the prefix tree and all decisions on the host.

A step in which every sequence generates is one forward pass of fixed shape and one draw, both replayed (engine.graphs); what comes back
is a few numbers per row, with one wait. Other steps issue the same operations one by one. Wishes that move or truncate the distribution
send their rows of logits to the host's sampler, as do the lists of the most likely tokens.

Everything runs on the CPU too, from the same code: that is how it is tested where there is no card.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.core.schedule import Scheduler
from ponder.engine.attend import Span
from ponder.engine.attend_device import DeviceAttention
from ponder.engine.draw_device import is_plain
from ponder.engine.graphs import DecodeRunner, DrawRunner
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.sampler import Draw, Drawn, draw, most_likely
from ponder.models.decoder import Decoder


class DeviceProcess(LocalProcess):
    """Role Process (core.roles). Its answers are those of a LocalProcess up to rounding, alone or in a crowd."""

    attention: DeviceAttention

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

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        if all(span.is_single for span in spans):
            return self.decode.run(spans, tokens)
        plan = self.attention.plan(spans)
        return self.decoder.forward(torch.tensor(tokens, device=self.decoder.device), plan.positions, plan.attend, plan.prompts)

    def _draw(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]:
        plain = [row for row, wish in enumerate(wishes) if is_plain(wish)]
        if len(plain) == len(wishes):
            return self.draws.run(hidden_RD, wishes)
        found: dict[int, Drawn] = {}
        for rows, drawn in ((plain, self.draws.run), ([row for row in range(len(wishes)) if row not in plain], self._draw_on_host)):
            if rows:
                found |= dict(zip(rows, drawn(hidden_RD[rows], [wishes[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(wishes))]

    def _draw_on_host(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]:
        return draw(self.decoder.logits(hidden_RD).cpu(), wishes)

    def _most_likely(self, hidden_RD: Tensor, num: int) -> tuple[list[list[int]], list[list[float]]]:
        return most_likely(self.decoder.logits(hidden_RD).cpu(), num)

    def _log_p(self, hidden_RD: Tensor, tokens: Tensor) -> list[float]:
        logits_RV = self.decoder.logits(hidden_RD).double()
        wanted_R = logits_RV.gather(1, tokens.to(logits_RV.device)[:, None])[:, 0]
        return (wanted_R - logits_RV.logsumexp(-1)).tolist()  # type: ignore[no-any-return]
