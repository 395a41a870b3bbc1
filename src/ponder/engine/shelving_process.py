"""LocalProcess whose sequences change behind their prompts, so that they rest on a shelf of their own (engine.keep) and not in the prefix store.

What changes them is up to who derives from it: a record of each running sequence says what is known of it, and every track stops where
the record says. Asks that go on from a shelved sequence fork it. Asks of the same prompt wait for who is just reading it.
"""

from abc import abstractmethod

from torch import Tensor

from ponder.core.formats import Tokenizer
from ponder.core.schedule import Scheduler
from ponder.engine.jobs import Job, Track
from ponder.engine.keep import Record, Shelf
from ponder.engine.kv import common_len
from ponder.engine.process import LocalProcess, Settings
from ponder.models.decoder import Decoder


class ShelvingProcess(LocalProcess):
    """Role Process (core.roles), with what those that derive from it have in common."""

    is_full_kept = False  # the whole prompt stays in the prefix store, for prompts that begin alike

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        self.shelf = Shelf()
        self.records: dict[Track, Record] = {}

    @abstractmethod
    def _new_record(self, num_prompt: int) -> Record:
        """Of a sequence of which `_first_row(num_prompt)` tokens at most are computed."""

    @abstractmethod
    def _first_row(self, num_prompt: int) -> int:
        """The first token of a prompt that must be computed here: those before may have been computed by somebody else."""

    def drop_cache(self) -> None:
        while self.shelf.drop_one():
            pass
        super().drop_cache()

    def _shareable(self, track: Track) -> tuple[int, ...]:
        return tuple(track.key[: min(track.num_given, self._first_row(track.num_prompt))])

    def _drop_idle(self) -> bool:
        return super()._drop_idle() or self.shelf.drop_one()

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
            self.records[track] = self._new_record(track.num_prompt)
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
        return min(common, self._first_row(track.num_prompt)) if self.is_full_kept else 0

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
        elif (not is_over or self.is_full_kept) and self._first_row(track.num_prompt):
            self.store.put(tuple(track.key[:kept]), track.pages)
        self.store.unpin(track.node)
        track.pages.release()
        track.pages = track.node = None


def _parts(track: Track, num: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt, and the tokens after it, of a track's first `num` tokens."""
    return tuple(track.key[: track.num_prompt]), tuple(track.key[track.num_prompt : num])
