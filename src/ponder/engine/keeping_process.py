"""A process whose sequences drop keys as a cache policy says.

Every track stops where keys are dropped next: at the end of its prompt, before it where the policy has a chunk, then where its trigger
fires. Without a chunk prompts are computed whole; what follows them reads the kept keys alone, whether it is generated, scored or
read by a probe, so that all asks about a prefix agree. A prompt that others begin alike stays in the prefix store untouched if the
policy says so; else its pages are free as soon as keys were dropped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder.core.formats import Tokenizer
from ponder.core.schedule import Scheduler
from ponder.engine.ahead import ahead_of
from ponder.engine.attend import Span
from ponder.engine.jobs import Track
from ponder.engine.keep import Keeper, Kept, Record
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import Settings
from ponder.engine.shelving_process import ShelvingProcess
from ponder.models.decoder import Decoder


class KeepingProcess(ShelvingProcess):
    """Role Process (core.roles). Its answers are those of the policy, bit for bit the same alone and in a crowd."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, settings: Settings) -> None:
        super().__init__(decoder, tokenizer, scheduler, settings)
        policy = settings.cache
        assert policy is not None
        self.policy, self.is_full_kept = policy, policy.is_full_kept
        self.guessed: dict[Pages, Record] = {}  # of this step's guesses, by the pages of each span
        self.keeper = Keeper(policy, decoder.config, self.pool, self.attention.kernel)
        self.ahead = ahead_of(self.keeper, self.lender)
        self.model_id += f"/cache-{policy.label}"

    @property
    def kept(self) -> Kept:
        """What the policy kept so far."""
        return self.keeper.kept

    def _new_record(self, num_prompt: int) -> Record:
        return self.keeper.begin(num_prompt)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, stored and under way, and of what evictors put elsewhere in memory."""
        records = [*self.records.values(), *(shelved.record for some in self.shelf.prompts.values() for shelved in some.values())]
        return super().nbytes + sum({id(rest): rest.nbytes for r in records for some in r.rests for rest in some}.values())

    def _first_row(self, num_prompt: int) -> int:
        return self.keeper.first_row(num_prompt)

    def _stop(self, track: Track) -> int:
        due = self.records[track].due
        end = track.num_given if track.num_computed < track.num_given else len(track.key)  # what is given is shelved for others
        return end if due is None else min(end, due)

    def _ahead(self, track: Track) -> int:
        due = self.records[track].due
        return super()._ahead(track) if due is None else due - track.num_computed - 1

    def _forward(self, spans: Sequence[Span], tokens: list[int]) -> Tensor:
        plan = self.attention.plan(spans)
        records = {track.pages: self.records[track] for _, track in self.running}
        self.guessed = {pages: self.records[round.track].blank() for pages, round in self.rounds.running.items()}
        records.update(self.guessed)  # what guesses show is known once they are kept
        attend = self.keeper.watched(plan, spans, [records[span.sequence] for span in spans])
        return self.decoder.forward(torch.tensor(tokens), plan.positions, attend, plan.prompts)

    def _committed(self, track: Track, rows: Sequence[tuple[Pages, int]]) -> None:
        record = self.records[track]
        for pages, place in rows:
            record.add_row(self.guessed[pages], place)
        if record.due is None or track.num_computed < record.due or self._drop_keys(track):
            return
        assert track.pages is not None
        track.num_computed = track.pages.num_tokens = record.due - 1  # the last one is computed again, when there is room to drop keys
        if next(job for job, other in self.running if other is track).finish is None:  # type: ignore[union-attr]
            self._preempt(track)

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
        if due is not None and span.stop >= due and not (self._look_ahead(track, last) and self._drop_keys(track)):
            self._preempt(track)
            return
        if span.stop == track.num_prompt or span.stop == track.num_given:
            self._shelve(track, span.stop, last)

    def _look_ahead(self, track: Track, hidden_D: Tensor) -> bool:
        """Shows the policy how the prompt would go on, where it asks for that. False when there are no pages for it."""
        num = track.num_prompt
        if self.ahead is None or track.num_computed > num or num <= self.policy.budget(num):
            return True
        assert track.pages is not None
        num_ahead = self.ahead.look(track.pages, self.records[track], track.tokens(0, num), hidden_D)
        flops = self.flops(num_ahead or 0, num)
        self.count.flops += flops
        next(job for job, other in self.running if other is track).count.flops += flops
        return num_ahead is not None

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
