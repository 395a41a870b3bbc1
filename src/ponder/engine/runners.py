"""Models that drafters run: another one with the same tokens, which keeps keys of its own, or the target with layers left out, or narrowed.

Both answer `guess` (core.draft.Runner): one forward pass over what they have not read yet of every context and draft, and a draw as
plain decoding would make it. Nothing that they write is read by anybody else: a twin has its own pages, and a thinned target writes
behind its sequence's keys, where the verifying pass writes next.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from ponder.core.draft import Blur, Context, Guess, Host, Runner, Twin
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.engine.attend import Attention, Span, in_order
from ponder.engine.kv import common_len
from ponder.engine.narrow import Narrowing
from ponder.engine.pages import Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.sampler import Draw, draw, most_likely, proposal_of
from ponder.models.decoder import Decoder

Likely = tuple[tuple[int, float], ...]  # tokens, best first, and their log-probabilities
Place = int | Blur  # what a model reads at one place
KV_BYTES = 1 << 29  # bound on a twin's keys and values


def guesses(
    decoder: Decoder, hidden_RD: Tensor, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool
) -> list[Guess]:  # fmt: skip
    """What the rows' own model draws after each context and draft."""
    wishes, logits_RV = [], decoder.logits(hidden_RD).cpu()
    for context, draft in zip(contexts, drafts):
        seen = (*context.tokens[context.num_prompt :], *draft) if context.sampling.has_penalties else ()
        wishes.append(Draw(context.seed, context.position + len(draft), context.sampling, None, seen, None, context.drift))
    drawn = draw(logits_RV, wishes)
    log_q = [proposal_of(logits_RV[i : i + 1], wish) if with_log_q else None for i, wish in enumerate(wishes)]
    sure = [d.log_p if wish.sampling.temperature == 0 else d.log_q for d, wish in zip(drawn, wishes)]
    return [Guess(d.token, math.exp(x), q, hidden_D) for d, x, q, hidden_D in zip(drawn, sure, log_q, hidden_RD)]


def last_rows(
    decoder: Decoder, attention: Attention, spans: Sequence[Span], places: dict[Pages, list[Place]], *, skips: frozenset[int] = frozenset()
) -> Tensor:
    """Hidden states [len(spans), D] at the end of each span, in the order given."""
    ordered = in_order(spans)
    plan = attention.plan(ordered)
    read = [place for span in ordered for place in places[span.sequence]]
    flat = torch.tensor([place if isinstance(place, int) else place[0][0] for place in read], device=decoder.device)
    mixes = {row: place for row, place in enumerate(read) if not isinstance(place, int)}
    hidden_TD = decoder.forward(flat, plan.positions, plan.attend, plan.prompts, skips=skips, mixes=mixes)
    ends, at = {}, 0
    for span in ordered:
        at += span.stop - span.start
        ends[span.sequence] = at - 1
    return hidden_TD[[ends[span.sequence] for span in spans]]


def states_of(
    decoder: Decoder, attention: Attention, tokens: Sequence[int], *, num_prompt: int, skips: frozenset[int] = frozenset()
) -> Tensor:  # fmt: skip
    """Final hidden states [T, D] of a text by itself, whose first num_prompt tokens are a prompt's. Raises BadField where it has no room."""
    pages = Pages(attention.pool)
    if not pages.reserve(len(tokens)):
        raise BadField(f"text of {len(tokens)} tokens: more than there is room for; give the process more memory or a shorter text")
    plan = attention.plan([Span(pages, 0, len(tokens), num_prompt)])
    hidden_TD = decoder.forward(torch.tensor(tokens, device=decoder.device), plan.positions, plan.attend, plan.prompts, skips=skips)
    pages.release()
    return hidden_TD


Rows = tuple[list[int], Tensor | None]  # numbers of the contexts that were read, and the final hidden state after each


def guessed(
    decoder: Decoder, rows: Rows, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool
) -> list[Guess | None]:  # fmt: skip
    found: list[Guess | None] = [None] * len(contexts)
    if rows[1] is not None:
        made = guesses(decoder, rows[1], [contexts[i] for i in rows[0]], [drafts[i] for i in rows[0]], with_log_q=with_log_q)
        for i, guess in zip(rows[0], made, strict=True):
            found[i] = guess
    return found


def likeliest(decoder: Decoder, rows: Rows, num_contexts: int, num: int) -> list[Likely | None]:
    found: list[Likely | None] = [None] * num_contexts
    if rows[1] is not None:
        for i, tokens, log_p in zip(rows[0], *most_likely(decoder.logits(rows[1]).cpu(), num), strict=True):
            found[i] = tuple(zip(tokens, log_p, strict=True))
    return found


@dataclass(eq=False)
class Reading:
    """What a twin has read of a request: `tokens` have keys, the first num_told of them of its context as it was last seen."""

    pages: Pages
    tokens: list[Place] = field(default_factory=list)
    num_told: int = 0


@dataclass(frozen=True, eq=False)
class Lender:
    """What a process lends to its drafter. twins: opens other models; None where it cannot."""

    decoder: Decoder
    tokenizer: Tokenizer
    attention: Attention
    _: KW_ONLY
    take: Callable[[Pages, int], bool]
    pages_of: Callable[[int], Pages | None]
    twins: Callable[[Twin], tuple[Decoder, Tokenizer]] | None

    def host(self) -> Host:
        decoder, tokens = self.decoder, self.tokenizer
        return Host(
            vocab_size=len(tokens.pieces), eos_ids=tokens.eos_ids, num_layers=decoder.config.num_layers, dim=decoder.config.dim,
            runner=self.runner, logits=decoder.logits,
        )  # fmt: skip

    def other(self, twin: Twin) -> Decoder:
        """The decoder of a model with the same tokens. Raises BadField for one that has others, or that cannot be opened here."""
        if self.twins is None or twin.skips or twin.inner is not None:
            raise BadField(
                f"{twin}: this process opens no other model, or one with all its layers; use catalogue.open_model, leave skips and inner out"
            )
        decoder, tokenizer = self.twins(twin)
        if tokenizer.pieces != self.tokenizer.pieces:
            raise BadField(f"{twin}: its {len(tokenizer.pieces)} tokens are not this model's {len(self.tokenizer.pieces)}; take one of its family")
        return decoder

    def runner(self, twin: Twin) -> Runner:
        if (twin.skips or twin.inner is not None) and twin.model is None and twin.weights is None:
            narrowing = None if twin.inner is None else Narrowing(self.decoder, self.attention, twin.inner, self.take)
            return ThinnedRunner(
                self.decoder, self.attention, frozenset(twin.skips), pages_of=self.pages_of, take=self.take, bridge=twin.bridge, narrowing=narrowing
            )  # fmt: skip
        decoder = self.other(twin)
        return TwinRunner(decoder, lambda pool: Attention(decoder.config, pool, is_native=self.attention.kernel is not None))


class TwinRunner:
    """Another model. A context longer than its own is no longer guessed for; short of memory it forgets who was read longest ago."""

    is_in_place = False

    def __init__(self, decoder: Decoder, open_attention: Callable[[Pool], Attention], kv_bytes: int = KV_BYTES) -> None:
        config = decoder.config
        self.decoder = decoder
        self.pool = Pool((config.num_layers, config.num_kv_heads, config.head_dim), decoder.dtype, kv_bytes, device=decoder.device)
        self.attention = open_attention(self.pool)
        self.readings: OrderedDict[int, Reading] = OrderedDict()

    def guess(self, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool = False) -> list[Guess | None]:
        return guessed(self.decoder, self._read(contexts, drafts), contexts, drafts, with_log_q=with_log_q)

    def likely(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Blur]], num: int) -> list[Likely | None]:
        return likeliest(self.decoder, self._read(contexts, drafts), len(contexts), num)

    def _read(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Place]]) -> Rows:
        spans: dict[int, Span] = {}
        tokens: dict[Pages, list[Place]] = {}
        for i, (context, draft) in enumerate(zip(contexts, drafts)):
            if len(context.tokens) + len(draft) <= self.decoder.config.context_len:
                reading = self._caught_up(context, draft, {c.request for c in contexts})
                if reading is not None:
                    start = reading.pages.num_tokens
                    spans[i] = Span(reading.pages, start, len(reading.tokens), context.num_prompt)
                    tokens[reading.pages] = reading.tokens[start:]
        if not spans:
            return [], None
        hidden_RD = last_rows(self.decoder, self.attention, list(spans.values()), tokens)
        for span in spans.values():
            span.sequence.num_tokens = span.stop
        return list(spans), hidden_RD

    def forget(self, request: int) -> None:
        reading = self.readings.pop(request, None)
        if reading is not None:
            reading.pages.release()

    def _caught_up(self, context: Context, draft: Sequence[Place], busy: set[int]) -> Reading | None:
        """The request's reading with room for all of it; tokens from pages.num_tokens on, at least one, are to be computed."""
        reading = self.readings.setdefault(context.request, Reading(Pages(self.pool)))
        self.readings.move_to_end(context.request)
        same = reading.num_told  # contexts only grow
        fresh = [*context.tokens[same:], *draft]
        num = same + common_len(reading.tokens[same:], fresh)
        reading.tokens[same:] = fresh
        reading.num_told = len(context.tokens)
        reading.pages.num_tokens = min(num, len(reading.tokens) - 1)
        while not reading.pages.reserve(len(reading.tokens)):
            oldest = next((request for request in self.readings if request not in busy), None)
            if oldest is None:
                self.forget(context.request)
                return None
            self.forget(oldest)
        return reading


class ThinnedRunner:
    """The target without some of its layers, over the target's own keys of what is committed."""

    is_in_place = True

    def __init__(
        self, decoder: Decoder, attention: Attention, skips: frozenset[int], *, pages_of: Callable[[int], Pages | None],
        take: Callable[[Pages, int], bool], bridge: Callable[[Tensor], Tensor] | None = None, narrowing: Narrowing | None = None,
    ) -> None:  # fmt: skip
        """pages_of: a request's pages, where it runs; take(pages, num): makes room. bridge: from final states to what the head is shown.
        narrowing: what each request keeps of the layers."""
        if (not skips and narrowing is None) or not skips < set(range(decoder.config.num_layers)):
            raise BadField(f"draft skips={sorted(skips)}: must be some of the layers 0 to {decoder.config.num_layers - 1}, and not all")
        self.decoder, self.attention, self.skips, self.pages_of, self.take, self.bridge = decoder, attention, skips, pages_of, take, bridge
        self.narrowing = narrowing
        self.ahead: dict[int, tuple[int, int]] = {}  # request -> (committed tokens, drafted ones that are written behind)

    def guess(self, contexts: Sequence[Context], drafts: Sequence[Sequence[int]], *, with_log_q: bool = False) -> list[Guess | None]:
        return guessed(self.decoder, self._read(contexts, drafts), contexts, drafts, with_log_q=with_log_q)

    def likely(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Blur]], num: int) -> list[Likely | None]:
        return likeliest(self.decoder, self._read(contexts, drafts), len(contexts), num)

    def _read(self, contexts: Sequence[Context], drafts: Sequence[Sequence[Place]]) -> Rows:
        spans: dict[int, Span] = {}
        tokens: dict[Pages, list[Place]] = {}
        for i, (context, draft) in enumerate(zip(contexts, drafts)):
            num, pages = len(context.tokens), self.pages_of(context.request)
            if pages is None or (self.narrowing is not None and not self.narrowing.knows(context)) or not self.take(pages, num + len(draft)):
                continue
            before, written = self.ahead.get(context.request, (0, 0))
            start = num - 1 if before != num or written > len(draft) else num - 1 + written
            spans[i] = Span(pages, start, num + len(draft), context.num_prompt)
            tokens[pages] = [context.tokens[-1], *draft][start - num + 1 :]
            self.ahead[context.request] = num, 1 + len(draft)
        if not spans:
            return [], None
        decoder = self.decoder
        if self.narrowing is not None:
            decoder = self.narrowing.decoder_for({contexts[i].request: span for i, span in spans.items()})
        hidden_RD = last_rows(decoder, self.attention, list(spans.values()), tokens, skips=self.skips)
        return list(spans), hidden_RD if self.bridge is None else self.bridge(hidden_RD)

    def forget(self, request: int) -> None:
        self.ahead.pop(request, None)
        if self.narrowing is not None:
            self.narrowing.forget(request)
