"""LocalProcess whose sequences drop keys as a cache policy says.

Every track stops where keys are dropped next: at the end of its prompt, before it where the policy has a chunk, then where its trigger
fires. Without a chunk prompts are computed whole; what follows them reads the kept keys alone, whether it is generated, scored or
read by a probe, so that all asks about a prefix agree. A prompt that others begin alike stays in the prefix store untouched if the
policy says so; else its pages are free as soon as keys were dropped. What drops keys goes on a shelf of its own (engine.keep), for
asks that go on from there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.core.formats import Tokenizer
from ponder.core.schedule import Scheduler
from ponder.engine.attend import Span
from ponder.engine.jobs import Job, Track
from ponder.engine.keep import Keeper, Kept, Record, Shelf
from ponder.engine.kv import common_len
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder


class KeepingProcess(LocalProcess):
    """Role Process (core.roles). Its answers are those of the policy, bit for bit the same alone and in a crowd."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        policy = settings.cache
        assert policy is not None
        self.policy, self.shelf = policy, Shelf()
        self.records: dict[Track, Record] = {}
        self.keeper = Keeper(policy, decoder.config, self.pool, self.attention.kernel)
        self.model_id += f"/cache-{policy.label}"

    @property
    def kept(self) -> Kept:
        """What the policy kept so far."""
        return self.keeper.kept

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, stored and under way, and of what evictors put elsewhere in memory."""
        records = [*self.records.values(), *(shelved.record for some in self.shelf.prompts.values() for shelved in some.values())]
        return super().nbytes + sum({id(rest): rest.nbytes for r in records for some in r.rests for rest in some}.values())

    def drop_cache(self) -> None:
        while self.shelf.drop_one():
            pass
        super().drop_cache()

    def _shareable(self, track: Track) -> tuple[int, ...]:
        return tuple(track.key[: min(track.num_given, self.keeper.first_row(track.num_prompt))])

    def _stop(self, track: Track) -> int:
        due = self.records[track].due
        end = track.num_given if track.num_computed < track.num_given else len(track.key)  # what is given is shelved for others
        return end if due is None else min(end, due)

    def _drop_idle(self) -> bool:
        return super()._drop_idle() or self.shelf.drop_one()

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        plan = self.attention.plan(spans)
        records = {track.pages: self.records[track] for _, track in self.running}
        attend = self.keeper.watched(plan, spans, [records.get(span.sequence) for span in spans])  # none of what is only guessed
        return self.decoder.forward(torch.tensor(tokens), plan.positions, attend, plan.prompts)

    # tracks begin

    def _begin(self, job: Job, track: Track, reading: list[tuple[int, ...]]) -> bool:
        prompt, after = _parts(track, track.num_given)
        found = self.shelf.find(prompt, after)
        best = found[1] if found else 0
        for _, other in self.running:
            if other.num_computed < other.num_given and self._of_use(track, other) > best:
                return False
        if found is None:
            if not super()._begin(job, track, []):
                return False
            self.records[track] = self.keeper.begin(track.num_prompt)
            return True
        shelved, track.num_computed = found
        track.node = self.store.root
        self.store.pin(track.node)
        track.pages = shelved.pages.fork()
        track.pages.num_tokens = track.num_computed
        self.records[track] = shelved.record.copy(track.num_computed)
        if track.num_computed == track.num_given and shelved.hidden is not None:
            track.hidden.append(shelved.hidden[None])
        elif track.num_computed == shelved.pages.num_tokens and ~track.key[-1] in shelved.paid:
            shelved.paid.discard(~track.key[-1])
            track.is_paid = True
        if not track.num_seen:
            num_reused = track.num_computed + track.is_paid if track is job.tracks[0] else 0
            job.count.reused_tokens += num_reused
            self.count.reused_tokens += num_reused
        return True

    def _of_use(self, track: Track, other: Track) -> int:
        """Tokens of `track` that what `other` is just computing will save it."""
        common = common_len(track.key[: track.num_given], other.key[: other.num_given])
        if track.num_prompt == other.num_prompt <= common:
            return min(common, track.num_given)
        return min(common, self.keeper.first_row(track.num_prompt)) if self.policy.is_full_kept else 0

    # tokens were computed

    def _keep(self, span: Span, track: Track, hidden_ND: Tensor) -> None:
        track.num_computed = span.sequence.num_tokens = span.stop
        first = max(span.start, track.num_given - 1) if track.keeps_all else len(track.key) - 1
        if first < span.stop:
            track.hidden.append(hidden_ND[first - span.start :])
        last = hidden_ND[-1].clone()
        if span.stop == track.num_prompt and self.policy.is_full_kept:
            self.store.put(tuple(track.key[: span.stop]), span.sequence)
        due = self.records[track].due
        if due is not None and span.stop >= due and not self._drop_keys(track):
            self._preempt(track)
            return
        if span.stop == track.num_prompt or span.stop == track.num_given:
            self._shelve(track, span.stop, last)

    def _drop_keys(self, track: Track) -> bool:
        """False when there is no page to move keys to, even after all that is idle is gone."""
        assert track.pages is not None
        while not self.keeper.drop_keys(track.pages, self.records[track]):
            if self._drop_idle():
                continue
            if track.node is self.store.root or track.node is None:
                return False
            self.store.pin(self.store.root)
            self.store.unpin(track.node)
            track.node = self.store.root
        if track.num_computed == track.num_prompt:
            self.pool.trim()  # what a long prompt held goes back to the system
        return True

    def _shelve(self, track: Track, num: int, hidden: Tensor | None = None) -> None:
        assert track.pages is not None
        self.shelf.put(*_parts(track, num), pages=track.pages, record=self.records[track], hidden=hidden)

    # ends

    def _retire(self, track: Track, *, is_over: bool = True) -> None:
        if track.pages is None or track.node is None:
            return
        record = self.records.pop(track)
        kept = min(track.num_computed, track.num_given) if track.keeps_all else track.num_computed
        if record.last:
            if kept >= max(record.last, track.num_prompt):
                shelved = self.shelf.put(*_parts(track, kept), pages=track.pages, record=record)
                if is_over and len(track.key) == kept + 1 > track.num_known:
                    shelved.paid.add(~track.key[-1])
        elif not is_over or self.policy.is_full_kept:
            self.store.put(tuple(track.key[:kept]), track.pages)
        self.store.unpin(track.node)
        track.pages.release()
        track.pages = track.node = None


def _parts(track: Track, num: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt, and the tokens after it, of a track's first `num` tokens."""
    return tuple(track.key[: track.num_prompt]), tuple(track.key[track.num_prompt : num])
