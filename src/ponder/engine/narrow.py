"""The target with part of its feed-forward left out, which part each request chose by its prompt: a model that a drafter runs.

What a request keeps is chosen once, when it is first guessed for: the last tokens of its prompt are read by themselves, every layer's
inner numbers are shown to the drafter's choice, and layers of what it keeps are packed, for this request alone. They go when the request
is over.

Shapes: T tokens that are looked at, F ffn width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ponder.core.draft import Context, InnerChoice
from ponder.core.errors import BadField
from ponder.core.formats import LayerBody
from ponder.engine.attend import Attention, Span, in_order
from ponder.engine.pages import Sequence as Pages
from ponder.models.decoder import Decoder, PlainBody
from ponder.models.narrow import ByRuns, narrowed, shown, unit_of


@dataclass(frozen=True, eq=False)
class Narrowing:
    """What each request keeps of a decoder's layers. take(pages, num): makes room. Raises BadField for layers that cannot be narrowed."""

    decoder: Decoder
    attention: Attention
    choice: InnerChoice
    take: Callable[[Pages, int], bool]
    units: list[int] = field(init=False)  # by layer
    chosen: dict[int, tuple[LayerBody, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decoder.body_of is None:
            raise BadField(f"{self.choice}: two models that draw together cannot be narrowed; leave the partner or this drafter out")
        object.__setattr__(self, "units", [unit_of(layer, self.decoder.config.ffn_dim) for layer in self.decoder.layers])

    def knows(self, context: Context) -> bool:
        """Whether the request's layers are there, chosen now or before."""
        if context.request not in self.chosen:
            bodies = self._choose(context)
            if bodies is None:
                return False
            self.chosen[context.request] = bodies
        return True

    def forget(self, request: int) -> None:
        self.chosen.pop(request, None)

    def decoder_for(self, spans: Mapping[int, Span]) -> Decoder:
        """The decoder for one pass over the requests' spans, in the order that a plan wants: each meets its own layers."""
        owner, runs, at = {span.sequence: request for request, span in spans.items()}, [], 0
        for span in in_order(spans.values()):
            runs.append((at, at + span.stop - span.start, self.chosen[owner[span.sequence]]))
            at = runs[-1][1]
        wholes = enumerate(self.decoder.bodies)
        return replace(self.decoder, bodies=tuple(ByRuns(whole, [(a, b, mine[i]) for a, b, mine in runs]) for i, whole in wholes))

    def _choose(self, context: Context) -> tuple[LayerBody, ...] | None:
        """The request's layers; None where there is no room to read its prompt."""
        tokens = context.tokens[max(0, context.num_prompt - self.choice.num_seen) : context.num_prompt]
        pages = Pages(self.attention.pool)
        if not self.take(pages, len(tokens)):
            pages.release()
            return None
        notes = self._inner(pages, tokens)
        pages.release()
        assert self.decoder.body_of is not None
        width, found = self.decoder.config.ffn_dim, []
        for layer, inner_TF, unit in zip(self.decoder.layers, notes, self.units, strict=True):
            found.append(self.decoder.body_of(narrowed(layer, self.choice.units(inner_TF, unit), unit, width)))
        return tuple(found)

    def _inner(self, pages: Pages, tokens: Sequence[int]) -> list[Tensor]:
        """Of every layer, the inner numbers [T, F] of a text by itself."""
        decoder, notes = self.decoder, list[Tensor]()
        bodies = tuple(PlainBody(shown(layer, notes), decoder.config, decoder.dtype) for layer in decoder.layers)
        plan = self.attention.plan([Span(pages, 0, len(tokens), len(tokens))])
        replace(decoder, bodies=bodies).forward(torch.tensor(tokens, device=decoder.device), plan.positions, plan.attend, plan.prompts)
        return notes
