"""A process that also answers Confer: several answers that read each other while they are written.

Every answer has a track and pages of its own; a token's span names the stretches of all that it meets (core.beside, engine.beside).
A token is computed when the others' that it meets are, and drawn when all that are not over can draw. So what it meets is a function of
what was asked: the same whatever runs beside, in any chunks, and after a preemption, where a track computes again as far as the others have
come. Only prompts go to the prefix store; an answer's pages are free when the last of its group is over.
"""

from collections.abc import Sequence
from dataclasses import replace

from ponder.core.asks import Ask, Confer
from ponder.core.beside import stretches
from ponder.core.errors import BadField, PromptTooLong
from ponder.core.formats import Tokenizer
from ponder.core.needs import WORDS
from ponder.core.schedule import Scheduler
from ponder.engine.attend import Attention, Span, Stretch
from ponder.engine.beside import BesideAttention
from ponder.engine.jobs import ConferJob, ExtendJob, Job, Track
from ponder.engine.pages import PAGE
from ponder.engine.process import LocalProcess
from ponder.engine.settings import Settings
from ponder.models.decoder import Decoder


class ConferringProcess(LocalProcess):
    """Role Process (core.roles)."""

    offers = frozenset(WORDS) - {"usd"}

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings | None = None) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        self.groups: dict[Track, tuple[ConferJob, int]] = {}  # of every track that reads others: its job, and its number there

    def add(self, ask: Ask, max_tokens: int | None = None, priority: int = 0) -> int:
        ticket = super().add(ask, max_tokens, priority)
        job = self.jobs[ticket]
        if isinstance(job, ConferJob) and len(job.tracks) > 1:
            self.groups |= {track: (job, i) for i, track in enumerate(job.tracks)}
        return ticket

    def _open_attention(self, settings: Settings) -> Attention:
        return BesideAttention(self.decoder.config, self.pool, is_native=settings.is_native, is_shared=settings.is_shared)

    # asks become jobs

    def _job(self, ask: Ask, max_tokens: int | None) -> Job:
        if not isinstance(ask, Confer):
            return super()._job(ask, max_tokens)
        num = len(ask.asks)
        if num > self.max_rows:
            raise BadField(f"confer of {num} asks: this process computes {self.max_rows} sequences at once, and all of them must run; raise max_rows")
        members = [super(ConferringProcess, self)._job(part, None if max_tokens is None else max_tokens // num) for part in ask.asks]
        job = ConferJob(ask, [member for member in members if isinstance(member, ExtendJob)])
        room = (self.context_len - job.num_common - sum(writer.num_rest for writer in job.writers)) // num
        for member in job.members:
            left = room - len(member.tokens)
            if left < 1:
                raise PromptTooLong(f"{num} prompts side by side leave room for {room} tokens of each answer: shorten them, or ask fewer at once")
            if left < member.num_left:
                member.num_left, member.end = left, "length"
        return job

    def _check_room(self, job: Job) -> None:
        if not isinstance(job, ConferJob):
            super()._check_room(job)
            return
        longest = [len(m.tracks[0].key) + min(m.num_left, self.context_len) + 1 for m in job.members]
        needed = sum(-(-num // PAGE) + 1 for num in longest) * self.pool.heads
        if needed > self.pool.num_pages:
            page = self.pool.page_nbytes
            raise BadField(
                f"{len(longest)} answers that read each other, of up to {max(longest)} tokens, need {needed * page:,} bytes of keys and values "
                f"at once: kv_bytes allows {self.pool.num_pages * page:,}; raise kv_bytes, or ask fewer or shorter ones"
            )

    # which tokens may be computed

    def _stop(self, track: Track) -> int:
        job, _ = self.groups.get(track, (None, 0))
        if job is None:
            return super()._stop(track)
        if track.num_computed < track.num_prompt:
            return track.num_prompt
        stop = len(track.key)
        for other, member in zip(job.tracks, job.members):
            if other is track or (member.finish is not None and other.num_computed == len(other.key)):
                continue
            num = other.num_computed - other.num_prompt  # tokens of its answer
            stop = min(stop, track.num_prompt + (num + 1 if num >= 0 else 0))
        return max(stop, track.num_computed)

    def _next_spans(self) -> list[tuple[Span, Job, Track]]:
        self._let_in()
        groups, works = self.groups, super()._next_spans()
        if not groups:
            return works
        works = [work for work in works if work[2] not in groups or work[0].stop <= self._stop(work[2])]  # another's pages may just have been taken
        return [(self._with_met(span, *groups[track]) if track in groups else span, job, track) for span, job, track in works]

    def _let_in(self) -> None:
        """Makes a row free for a waiting track whose group runs, where one that came later has it: that group waits for it."""
        groups = self.groups
        if not groups or len(self.running) < self.max_rows:
            return
        is_wanted = any(track in groups and groups[track][0] in [job for job, _ in self.running] for _, track in self.waiting)
        if is_wanted:
            first = min(track.order for _, track in self.waiting if track in groups)
            latest = max((track for _, track in self.running), key=lambda track: track.order)
            if latest.order > first:
                self._preempt(latest)

    def _with_met(self, span: Span, job: ConferJob, me: int) -> Span:
        if span.start < span.num_prompt:
            return span
        return replace(span, met=tuple(self._met(job, me, place) for place in range(span.start, span.stop)))

    def _met(self, job: ConferJob, me: int, place: int) -> tuple[Stretch, ...]:
        """What the token at a place of a member's track meets: the common prompt in its own pages, then stretches of all."""
        start, view = job.num_common, stretches(job.ask.layout, job.writers, me, place - job.tracks[me].num_prompt)
        far = start + sum(last - first for _, first, last in view) - 1 - place  # how much further on it stands in its view than in its pages
        own = job.tracks[me].pages
        assert own is not None
        met, at = [Stretch(own, 0, start, far)] if start else [], start
        for number, first, last in view:
            pages = job.tracks[number].pages
            assert pages is not None
            met.append(Stretch(pages, start + first, start + last, far + start + first - at))
            at += last - first
        return tuple(met)

    def _num_beside(self, track: Track) -> int:
        job, me = self.groups.get(track, (None, 0))
        if job is None or track.num_computed < track.num_prompt:
            return 0
        time = track.num_computed - track.num_prompt
        return sum(last - first for number, first, last in stretches(job.ask.layout, job.writers, me, time) if number != me)

    # tracks begin, draw and end

    def _begin(self, job: Job, track: Track, reading: list[tuple[int, ...]]) -> bool:
        is_begun = super()._begin(job, track, reading)
        if track.is_private and len(track.key) > track.num_given:
            track.hidden.clear()  # its next token is not drawn from the prompt's end
        return is_begun

    def _drawing(self, ready: Sequence[tuple[Job, Track]]) -> list[tuple[ExtendJob, Track]]:
        able, drawing = {track for _, track in ready}, super()._drawing(ready)
        for job in dict.fromkeys(job for job, _ in ready if isinstance(job, ConferJob)):
            due = job.due()
            if all(job.tracks[i] in able for i in due):
                drawing += [(job.members[i], job.tracks[i]) for i in due]
        return drawing

    def _close(self, ticket: int, job: Job) -> None:
        super()._close(ticket, job)
        for track in job.tracks:
            self.groups.pop(track, None)

    def _extend(self, ready: Sequence[tuple[ExtendJob, Track]]) -> None:
        mine = [(member, track) for member, track in ready if track in self.groups]
        others = [(member, track) for member, track in ready if track not in self.groups]
        if others:
            super()._extend(others)
        if mine:
            self.rounds.extend(self, mine, is_plain=True)  # what a guess meets would have to be guessed too
        for job in self.jobs.values():
            if isinstance(job, ConferJob):
                job.write()
