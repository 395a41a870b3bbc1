"""LocalProcess: answers asks with a decoder on this machine. One step is one forward pass over everything that runs.

A step admits waiting tracks, computes what its scheduler allots (a token of every generating track, pieces of prompts), and gives
every track whose logits are ready its token, its children or its scores. Tracks join and leave at every step. When several asks
need the same prefix that is not stored yet, one computes it and the others wait for it. When pages run out, idle prefixes go; then
the latest track is put back among the waiting, and what it loses is computed again: its answer stays the same.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Ask, Extend, Extension, Prompt, Read
from ponder.core.budget import Cost
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.core.needs import WORDS
from ponder.core.probe import Probe, checkpoint_of, rows_of
from ponder.core.roles import Progress
from ponder.core.schedule import Scheduler, Work
from ponder.engine.attend import Attention, Span, in_order
from ponder.engine.jobs import UNLIMITED, Count, ExpandJob, ExtendJob, Job, ReadJob, ScoreJob, Track, job_of, partial_answer
from ponder.engine.kv import KVStore, common_len
from ponder.engine.meter import Meter
from ponder.engine.pages import PAGE, PLAIN, Pool
from ponder.engine.pages import Sequence as Pages
from ponder.engine.passes import Passes, num_key_layers, passes_of
from ponder.engine.planned import PlannedAttention
from ponder.engine.prompts import Prompts
from ponder.engine.rounds import Rounds
from ponder.engine.runners import Lender
from ponder.engine.sampler import Draw, Drawn, LogP, draw, most_likely
from ponder.engine.settings import Settings
from ponder.models.decoder import Decoder
from ponder.models.memory import give_back

HEAD_ROWS = 64  # scored positions that meet the output head at a time
NUM_RENDERED = 4096  # prompts whose token ids are remembered
TIDY_STEPS, TIDY_NBYTES = 128, 1 << 28  # steps after which free memory goes back to the system, if it is more than so many bytes


class LocalProcess:
    """Role Process (core.roles). Not thread-safe: one driver steps it."""

    offers = frozenset(WORDS) - {"usd", "confer"}

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        config = decoder.config
        self.decoder, self.tokenizer, self.scheduler = decoder, tokenizer, scheduler
        self.max_rows, self.chunk = settings.max_rows, settings.chunk
        self.model_id, self.context_len = decoder.model_id, config.context_len
        if settings.kv_format is not PLAIN:
            self.model_id += f"/kv-{settings.kv_format.name}"
        shape = (num_key_layers(decoder), config.num_kv_heads, config.head_dim)
        self.pool = Pool(shape, decoder.dtype, settings.kv_bytes, settings.kv_format, device=decoder.device)
        self.store = KVStore(self.pool)
        self.attention = self._open_attention(settings)
        self.model_id += self.attention.name  # equal only for equal results, and the kernels round differently
        self.count, self.num_calls, self.num_steps = Count(), 0, 0  # counted by the loop, whoever asked
        self.num_preempted = self.num_recomputed = 0  # tracks put back, and tokens computed again for them
        self.jobs: dict[int, Job] = {}
        self.priorities: dict[int, int] = {}
        self.waiting: list[tuple[Job, Track]] = []
        self.running: list[tuple[Job, Track]] = []
        self.num_added = 0
        self.rendered: OrderedDict[object, list[int]] = OrderedDict()
        self.lender = Lender(decoder, tokenizer, self.attention, take=self._take, pages_of=self._pages_of, twins=settings.twins)
        self.rounds = Rounds(
            settings.speculation, self.lender.host(), self._take, self._ahead, max_rows=self.max_rows, meter=self._open_meter(), is_here=self._is_here
        )  # fmt: skip
        self.prompts = Prompts(settings.prompt, self.lender)
        self.model_id += self.rounds.name + self.prompts.name

    @property
    def totals(self) -> Cost:
        """All that was computed so far, cancelled work included; what was computed again after a preemption apart."""
        return replace(self.count.cost(), calls=self.num_calls)

    @property
    def passes(self) -> Passes:
        return passes_of(self.decoder, self.attention)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, stored and under way."""
        return self.pool.nbytes

    def prompt_len(self, prompt: Prompt) -> int:
        """Tokens of the prompt that the model reads."""
        return len(self._prompt_ids(prompt))

    def flops(self, num_tokens: int, context_len: float) -> float:
        return self.decoder.flops(num_tokens, context_len)

    def add(self, ask: Ask, max_tokens: int | None = None, priority: int = 0) -> int:
        """See core.roles. Higher priorities are admitted first. Raises BadField for a Judge ask, a final prefix, a foreign token, a
        probe of another model or an ask that could never fit kv_bytes; PromptTooLong."""
        job = self._job(ask, max_tokens)
        self._check_room(job)
        self.prompts.hold(self._whole_prompt(ask.prefix.prompt), job)  # type: ignore[union-attr]
        self.num_added += 1
        self.jobs[self.num_added] = job
        if not job.is_done:
            at = len(self.waiting)
            for number, track in enumerate(job.tracks):
                track.order = (-priority, self.num_added, number)
            while at and self.waiting[at - 1][1].order > job.tracks[0].order:
                at -= 1
            self.waiting[at:at] = [(job, track) for track in job.tracks]
        return self.num_added

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Answer]]:
        for job in self.jobs.values():
            job.count.row_tokens = 0
        self._admit()
        spans = self._next_spans()
        self._read_prompts(self.chunk - sum(span.stop - span.start for span, _, _ in spans))
        self._compute(spans)
        self._use_hidden()
        done = [(ticket, job) for ticket, job in self.jobs.items() if job.is_done]
        for ticket, job in done:
            self._close(ticket, job)
        self.num_steps += 1
        if not self.num_steps % TIDY_STEPS:
            give_back(above=TIDY_NBYTES)
        if not self.jobs:
            self.pool.trim()
        return [(ticket, job.answer()) for ticket, job in done]

    def progress(self) -> dict[int, Progress]:
        counts = {ticket: job.count for ticket, job in self.jobs.items()}
        return {ticket: Progress(c.prompt_tokens, c.generated_tokens, c.row_tokens) for ticket, c in counts.items()}

    def partial(self, ticket: int) -> Extension | None:
        """How far an Extend under way has come; None for other asks."""
        job = self.jobs.get(ticket)
        return job.so_far() if isinstance(job, ExtendJob) else None

    @torch.inference_mode()
    def cancel(self, ticket: int) -> Answer:
        """Raises BadField for a ticket that is not under way."""
        if ticket not in self.jobs:
            raise BadField(f"ticket {ticket} is not under way: it was never given, or is answered or cancelled; cancel open tickets only, once")
        job = self.jobs[ticket]
        self._close(ticket, job)
        return partial_answer(job)

    def drop_cache(self) -> None:
        """Forgets every stored prefix that nobody uses and gives its memory back."""
        while self.store.evict():
            pass
        self.pool.trim(at_least=1)
        self.prompts.drop_cache()

    # what another device computes in its own way

    def _open_attention(self, settings: Settings) -> Attention:
        if settings.attend is not None:
            return PlannedAttention(self.decoder.config, self.pool, settings.attend, is_native=settings.is_native, is_shared=settings.is_shared)
        return Attention(self.decoder.config, self.pool, is_native=settings.is_native, is_shared=settings.is_shared)

    def _open_meter(self) -> Meter:
        return Meter(self)

    def _is_here(self, span: Span) -> bool:
        """Whether a span's row was computed ahead of the step that asks for it."""
        return False

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        """Hidden rows [T, D] of the spans' tokens, whose keys and values are written."""
        return self.passes.run(spans, tokens)

    def _draw(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]:
        return draw(self.decoder.logits(hidden_RD), wishes)

    def _draw_shown(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> tuple[list[Drawn], Tensor]:
        """What `_draw` draws, and the logits [R, V] on the host."""
        logits_RV = self.decoder.logits(hidden_RD)
        return draw(logits_RV, wishes), logits_RV

    def _most_likely(self, hidden_RD: Tensor, num: int) -> tuple[list[list[int]], list[list[float]]]:
        return most_likely(self.decoder.logits(hidden_RD), num)

    def _log_p(self, hidden_RD: Tensor, tokens: Tensor) -> list[float]:
        """Log-probability of tokens[i] after row i."""
        return LogP(self.decoder.logits(hidden_RD)).of(torch.arange(len(tokens)), tokens).tolist()  # type: ignore[no-any-return]

    # what a cache policy changes (engine.keeping_process)

    def _shareable(self, track: Track) -> tuple[int, ...]:
        """The beginning of a track that may be taken from the prefix store."""
        return tuple(track.key[: track.num_given])

    def _stop(self, track: Track) -> int:
        """Tokens up to which a track may be computed in this step."""
        return len(track.key)

    def _ahead(self, track: Track) -> int:
        """How many guesses after a track's next token may be computed with it."""
        return UNLIMITED

    def _num_beside(self, track: Track) -> int:
        """How many tokens of others those of a track meet."""
        return 0

    def _committed(self, track: Track, rows: Sequence[tuple[Pages, int]]) -> None:
        """A round has kept tokens of a track, each computed in a span of those pages, at that place."""

    def _drop_idle(self) -> bool:
        """Drops what was kept in case somebody goes on from there and was used longest ago; False when there is nothing."""
        return self.store.evict()

    # asks become jobs

    def _job(self, ask: Ask, max_tokens: int | None) -> Job:
        job = job_of(ask, self._prompt_ids, self.tokenizer, context_len=self.context_len, max_tokens=max_tokens)
        for probe in (ask.probe,) if isinstance(ask, Read) else ask.probes if isinstance(ask, Extend) else ():
            self._check_probe(probe)
        return job

    def _check_probe(self, probe: Probe) -> None:
        mine = checkpoint_of(self.model_id)
        if probe.model_id not in (None, mine):
            raise BadField(f"probe {probe.name!r} knows the states of model {probe.model_id}, this is {mine}; train one on this model")

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """As the model meets it."""
        return self.prompts.of(self._whole_prompt(prompt))

    def _whole_prompt(self, prompt: Prompt) -> list[int]:
        name = (prompt.messages, prompt.prefill)
        if name not in self.rendered:
            ids = self.tokenizer.render(prompt.messages, prompt.prefill)
            if not ids:  # there is no state that a first token could be drawn from
                raise BadField("the prompt is empty, and this model has no token that begins a text: write at least one character")
            self.rendered[name] = ids
            if len(self.rendered) > NUM_RENDERED:
                self.rendered.popitem(last=False)
        return self.rendered[name]

    def _check_room(self, job: Job) -> None:
        longest = max((len(track.key) for track in job.tracks), default=0) + 1
        if isinstance(job, ExtendJob):
            longest += min(job.num_left, self.context_len)
        needed = (-(-longest // PAGE) + 1) * self.pool.heads
        if needed > self.pool.num_pages:
            raise BadField(
                f"an ask of up to {longest} tokens needs {needed * self.pool.page_nbytes:,} bytes of keys and values: "
                f"kv_bytes allows {self.pool.num_pages * self.pool.page_nbytes:,}; raise kv_bytes, or shorten the prompt or max_tokens"
            )

    # waiting tracks begin

    def _admit(self) -> None:
        """Starts waiting tracks in order, except those whose prefix another is just computing."""
        if not self.waiting or len(self.running) >= self.max_rows:
            return
        reading = [tuple(t.key[: t.num_given]) for _, t in self.running if t.num_computed < t.num_given]
        held: list[tuple[Job, Track]] = []
        for at, (job, track) in enumerate(self.waiting):
            if len(self.running) >= self.max_rows:
                held += self.waiting[at:]
                break
            if self.prompts.is_read(job) and self._begin(job, track, reading):
                self.running.append((job, track))
            else:
                held.append((job, track))
        self.waiting = held
        self.running.sort(key=lambda pair: pair[1].order)

    def _begin(self, job: Job, track: Track, reading: list[tuple[int, ...]]) -> bool:
        """Takes from the store what it has of the track; False when it is better to wait."""
        given = self._shareable(track)
        found = self.store.find(given)
        if any(common_len(given, other) > found.num_tokens for other in reading):
            return False
        track.node = found.node
        self.store.pin(found.node)
        track.num_computed = self.attention.begin(min(found.num_tokens, track.num_given - 1), track.num_prompt)
        is_whole = self.attention.begin(track.num_given, track.num_prompt) == track.num_given
        if is_whole and found.num_tokens == track.num_given and found.is_node_end and found.node.hidden is not None:
            track.num_computed = track.num_given
            track.hidden.append(found.node.hidden[None])
        elif found.is_node_end and found.num_tokens == track.num_given - 1 and ~track.key[-1] in found.node.paid:
            found.node.paid.discard(~track.key[-1])
            track.is_paid = True
        track.pages = Pages(self.pool, self.store.pages(found)[:, :, : -(-track.num_computed // PAGE)], track.num_computed)
        if track.num_computed < track.num_given:
            reading.append(given)
        if not track.num_seen:
            num_reused = track.num_computed + track.is_paid if track is job.tracks[0] else 0  # what options share counts once
            job.count.reused_tokens += num_reused
            self.count.reused_tokens += num_reused
        return True

    def _make_room(self, track: Track, num_tokens: int) -> bool:
        """Pages for the track's first num_tokens: free ones, those of idle prefixes, those of the latest track after it."""
        assert track.pages is not None
        while not track.pages.reserve(num_tokens):
            if self._drop_idle():
                continue
            latest = max((t for _, t in self.running if t.pages is not None), key=lambda t: t.order)
            if latest is track:
                if track.node is self.store.root or track.node is None:
                    return False
                self.store.pin(self.store.root)  # its own pages are enough: all of the store may go
                self.store.unpin(track.node)
                track.node = self.store.root
                continue
            self._preempt(latest)
        return True

    def _take(self, pages: Pages, num_tokens: int) -> bool:
        """Pages for a guess: free ones and those of idle prefixes."""
        while not pages.reserve(num_tokens):
            if not self.store.evict():
                return False
        return True

    def _pages_of(self, request: int) -> Pages | None:
        return next((track.pages for _, track in self.running if track.order[1] == request), None)

    def _preempt(self, track: Track) -> None:
        """Puts a running track back among the waiting; what it computed stays in the store while there is room."""
        job = next(job for job, other in self.running if other is track)
        self.running = [(owner, other) for owner, other in self.running if other is not track]
        self._retire(track, is_over=False)
        track.num_seen = max(track.num_seen, track.num_computed)
        track.hidden.clear()
        track.is_paid = track.is_paid and track.num_computed < track.num_given
        track.num_computed = 0
        if not track.keeps_all and not track.is_private:
            track.num_given = len(track.key)
        at = len(self.waiting)
        while at and self.waiting[at - 1][1].order > track.order:
            at -= 1
        self.waiting.insert(at, (job, track))
        self.num_preempted += 1

    # one forward pass

    def _read_prompts(self, room: int) -> None:
        """Goes on with prompts that are read before the model meets them, even when there is little room."""
        for job, num, context_len in self.prompts.read(max(room, self.chunk // 8)):
            for count in (job.count, self.count):
                count.flops += self.prompts.flops(num, context_len)

    def _next_spans(self) -> list[tuple[Span, Job, Track]]:
        """What this step computes, as the scheduler allots it."""
        able = [(job, track) for job, track in self.running if track.num_computed < min(len(track.key), self._stop(track))]
        if not able:
            return []
        works = [Work(self._stop(t) - t.num_computed, t.num_computed >= t.num_known and t.num_computed == len(t.key) - 1) for _, t in able]
        spans = []
        for (job, track), num in zip(able, self.scheduler.allot(works, self.chunk), strict=True):
            start = track.num_computed
            if not num or track.pages is None:
                continue
            stop = self.attention.stop(start + num, track.num_prompt)
            if self._make_room(track, stop):
                spans.append((Span(track.pages, start, stop, track.num_prompt, asked=track.num_given - 1), job, track))
            else:
                self._preempt(track)
        spans = [(span, job, track) for span, job, track in spans if track.pages is not None]  # a later one may have taken an earlier one's pages
        spans = self.rounds.widen(spans)
        if len(spans) == 1:
            return spans
        owners = {span.sequence: (job, track) for span, job, track in spans}
        return [(span, *owners[span.sequence]) for span in in_order(span for span, _, _ in spans)]

    def _compute(self, spans: Sequence[tuple[Span, Job, Track]]) -> None:
        if not spans:
            return
        tokens = [t for span, _, track in spans for t in self.rounds.tokens(span, track)]
        hidden_TD = self._forward([span for span, _, _ in spans], tokens)
        for span, job, track, hidden_ND in self.rounds.gathered(spans, hidden_TD):
            self._book(span, job, track)
            self._keep(span, track, hidden_ND)

    def _book(self, span: Span, job: Job, track: Track) -> None:
        start = max(span.start, min(span.stop, track.num_seen))  # what a preempted track computes again was booked before
        self.num_recomputed += start - span.start
        num = span.stop - start
        num_free = max(0, span.stop - max(start, track.num_known))  # generated here: paid when drawn
        if track.is_paid and start < track.num_given <= span.stop:
            num_free += 1
        flops = self.flops(num, (start + 1 + span.stop) / 2 + self._num_beside(track)) - self.passes.spared(replace(span, start=start))
        job.count.prompt_tokens += num - num_free
        job.count.row_tokens += num
        job.count.flops += flops
        self.count.prompt_tokens += num - num_free
        self.count.flops += flops

    def _keep(self, span: Span, track: Track, hidden_ND: Tensor) -> None:
        """Notes what was computed: the given part goes to the store, rows that the head must see are kept."""
        track.num_computed = span.sequence.num_tokens = span.stop
        given = track.num_given
        if span.start < given <= span.stop:
            node = self.store.put(tuple(track.key[:given]), span.sequence, hidden_ND[given - 1 - span.start].clone())
            if track.node is not None:
                self.store.pin(node)
                self.store.unpin(track.node)
                track.node = node
        first = max(span.start, given - 1) if track.keeps_all else len(track.key) - 1
        if first < span.stop:
            track.hidden.append(hidden_ND[first - span.start :])

    # logits

    def _use_hidden(self) -> None:
        """Gives every track whose last token is computed what it waits for."""
        ready = [(job, track) for job, track in self.running if track.hidden and track.num_computed == len(track.key)]
        extending = self._drawing(ready)
        if extending:
            self._extend(extending)
        self._expand([(job, track) for job, track in ready if isinstance(job, ExpandJob)])
        self._score([(job, track) for job, track in ready if isinstance(job, ScoreJob)])
        self._read([(job, track) for job, track in ready if isinstance(job, ReadJob)])

    def _drawing(self, ready: Sequence[tuple[Job, Track]]) -> list[tuple[ExtendJob, Track]]:
        """Which of those that could draw a token do."""
        return [(job, track) for job, track in ready if isinstance(job, ExtendJob)]

    def _extend(self, ready: Sequence[tuple[ExtendJob, Track]]) -> None:
        self.rounds.extend(self, ready)

    def _expand(self, ready: Sequence[tuple[ExpandJob, Track]]) -> None:
        if ready:
            tokens, log_p = self._most_likely(_waiting_rows(ready), max(job.ask.num for job, _ in ready))
            for row, (job, _) in enumerate(ready):
                job.push(tokens[row][: job.ask.num], log_p[row][: job.ask.num])

    def _score(self, ready: Sequence[tuple[ScoreJob, Track]]) -> None:
        if not ready:
            return
        hidden_ND = torch.cat([rows for _, track in ready for rows in track.hidden])
        wanted = torch.tensor([token for _, track in ready for token in track.options])
        log_p: list[float] = []
        for start in range(0, len(hidden_ND), HEAD_ROWS):
            log_p += self._log_p(hidden_ND[start : start + HEAD_ROWS], wanted[start : start + HEAD_ROWS])
        for job, track in ready:
            job.push(track.options, log_p[: len(track.options)])
            del log_p[: len(track.options)]
        self._dismiss([track for _, track in ready])

    def _read(self, ready: Sequence[tuple[ReadJob, Track]]) -> None:
        for job, track in ready:
            job.push(rows_of(job.ask.probe.read(torch.cat(track.hidden))))
        self._dismiss([track for _, track in ready])

    def _dismiss(self, tracks: Sequence[Track]) -> None:
        """Ends tracks that have all they wanted."""
        for track in tracks:
            self._retire(track)
        retired = {id(track) for track in tracks}
        self.running = [(job, track) for job, track in self.running if id(track) not in retired]

    # ends

    def _close(self, ticket: int, job: Job) -> None:
        """Frees all that the job holds."""
        del self.jobs[ticket]
        self.rounds.forget(ticket)
        self.prompts.forget(job)
        mine = [track for owner, track in self.running if owner is job]
        if mine:
            self.running = [(owner, track) for owner, track in self.running if owner is not job]
        self.waiting = [(owner, track) for owner, track in self.waiting if owner is not job]
        for track in mine:
            self._retire(track)
        self.num_calls += 1

    def _retire(self, track: Track, *, is_over: bool = True) -> None:
        """Leaves what the track computed to the store, so that an ask that goes on from there copies nothing."""
        if track.pages is None or track.node is None:
            return
        kept = min(track.num_computed, track.num_given) if track.keeps_all or track.is_private else track.num_computed
        node = self.store.put(tuple(track.key[:kept]), track.pages)
        if is_over and len(track.key) == kept + 1 > track.num_known:
            node.paid.add(~track.key[-1])
        self.store.unpin(track.node)
        track.pages.release()
        track.pages = track.node = None


def _waiting_rows(ready: Sequence[tuple[Job, Track]]) -> Tensor:
    """[len(ready), D]: the one waiting row of each."""
    return torch.cat([track.hidden.pop() for _, track in ready])
