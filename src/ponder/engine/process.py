"""LocalProcess: answers asks with a decoder on this machine. One step is one forward pass over everything that runs.

A step admits waiting tracks, computes one new token of every generating track and a chunk of those that still read their
prompt, and gives every track whose logits are ready its token, its children or its scores. When several asks need the same
prefix that is not stored yet, one computes it and the others wait for it.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ponder.core.asks import Answer, Ask, Expand, Extend, Judge, Prompt
from ponder.core.budget import Cost
from ponder.core.errors import BadField, PromptTooLong
from ponder.core.formats import Tokenizer
from ponder.core.roles import Progress
from ponder.engine.attend import Span, StepPlan, in_order
from ponder.engine.jobs import Count, ExpandJob, ExtendJob, Job, ScoreJob, Track, partial_answer
from ponder.engine.kv import KVStore, Node, common_len
from ponder.engine.rows import Row, Rows
from ponder.engine.sampler import LogP, draw, most_likely
from ponder.models.decoder import Decoder

UNLIMITED = 1 << 60
HEAD_ROWS = 64  # scored positions that meet the output head at a time
NUM_RENDERED = 4096  # prompts whose token ids are remembered


class LocalProcess:
    """Role Process (core.roles). Not thread-safe: one driver steps it.

    max_rows: most sequences computed at once; chunk: most prompt tokens computed in one step; kv_bytes: bound on the store
    of computed prefixes (sequences under way hold theirs beside it, see `nbytes`).
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, *, max_rows: int = 64, kv_bytes: int = 1 << 30, chunk: int = 512) -> None:
        config = decoder.config
        self.decoder, self.tokenizer = decoder, tokenizer
        self.max_rows, self.chunk = max_rows, chunk
        self.model_id, self.context_len = decoder.model_id, config.context_len
        self.store = KVStore((config.num_layers, config.num_kv_heads, config.head_dim), decoder.dtype, kv_bytes)
        self.rows = Rows(config, decoder.dtype, max_rows)
        self.count, self.num_calls = Count(), 0  # counted by the loop, whoever asked
        self.jobs: dict[int, Job] = {}
        self.waiting: deque[tuple[Job, Track]] = deque()
        self.running: list[tuple[Job, Track]] = []
        self.parked: OrderedDict[Node, Row] = OrderedDict()  # rows of ended tracks, for an ask that goes on exactly there
        self.num_added = 0
        self.rendered: OrderedDict[object, list[int]] = OrderedDict()

    @property
    def totals(self) -> Cost:
        """All that was computed so far, cancelled work included."""
        return replace(self.count.cost(), calls=self.num_calls)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, stored and under way."""
        return self.store.nbytes + self.rows.nbytes

    def prompt_len(self, prompt: Prompt) -> int:
        return len(self._prompt_ids(prompt))

    def flops(self, num_tokens: int, context_len: float) -> float:
        """Two per weight that a token meets (head included), and four per key, head and width element of attention."""
        config = self.decoder.config
        attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * context_len
        per_layer = config.dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads) + 3 * config.dim * config.ffn_dim
        return num_tokens * (2.0 * (config.num_layers * per_layer + config.dim * config.vocab_size) + attention)

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        """See core.roles. Raises BadField for a Judge ask, a final prefix or a foreign token; PromptTooLong."""
        job = self._job(ask, max_tokens)
        self.num_added += 1
        self.jobs[self.num_added] = job
        if not self._is_done(job):
            self.waiting.extend((job, track) for track in job.tracks)
        return self.num_added

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Answer]]:
        for job in self.jobs.values():
            job.count.row_tokens = 0
        self._admit()
        self._compute(self._next_spans())
        self._use_hidden()
        done = [(ticket, job) for ticket, job in self.jobs.items() if self._is_done(job)]
        for ticket, job in done:
            self._close(ticket, job)
        return [(ticket, job.answer()) for ticket, job in done]

    def progress(self) -> dict[int, Progress]:
        counts = {ticket: job.count for ticket, job in self.jobs.items()}
        return {ticket: Progress(c.prompt_tokens, c.generated_tokens, c.row_tokens) for ticket, c in counts.items()}

    @torch.inference_mode()
    def cancel(self, ticket: int) -> Answer:
        job = self.jobs[ticket]
        self._close(ticket, job)
        return partial_answer(job)

    # asks become jobs

    def _job(self, ask: Ask, max_tokens: int | None) -> Job:
        if isinstance(ask, Judge):
            raise BadField("a process answers Extend, Expand and Score; a Judge ask goes to its verifier")
        prefix = ask.prefix
        if prefix.is_final:
            raise BadField(f"prefix is final ({prefix.finish}): it cannot be extended, expanded or scored")
        foreign = [t for t in prefix.tokens if not 0 <= t < len(self.tokenizer.pieces)]
        if foreign:
            raise BadField(f"prefix holds token {foreign[0]}: this model has {len(self.tokenizer.pieces)}; the prefix is another model's")
        prompt_ids = self._prompt_ids(prefix.prompt)
        if len(prompt_ids) + 1 > self.context_len:
            raise PromptTooLong(
                f"prompt of {len(prompt_ids)} tokens: the context holds {self.context_len} and an answer needs one; shorten the prompt"
            )
        num_left = min(prefix.prompt.max_tokens, self.context_len - len(prompt_ids)) - len(prefix.tokens)
        if isinstance(ask, Extend):
            own = UNLIMITED if ask.max_tokens is None else ask.max_tokens
            limits = ((num_left, "length"), (own, "limit"), (UNLIMITED if max_tokens is None else max_tokens, "budget"))
            return ExtendJob(ask, prompt_ids, self.tokenizer, limits)
        if isinstance(ask, Expand):
            return ExpandJob(ask, prompt_ids, self.tokenizer, num_left)
        job = ScoreJob(ask, prompt_ids, self.tokenizer)
        longest = max((len(track.key) + 1 for track in job.tracks), default=0)
        if longest > self.context_len:
            raise PromptTooLong(f"prefix and option of {longest} tokens: the context holds {self.context_len}; shorten the option")
        return job

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        name = (prompt.messages, prompt.prefill)
        if name not in self.rendered:
            self.rendered[name] = self.tokenizer.render(prompt.messages, prompt.prefill)
            if len(self.rendered) > NUM_RENDERED:
                self.rendered.popitem(last=False)
        return self.rendered[name]

    def _is_done(self, job: Job) -> bool:
        if isinstance(job, ExtendJob):
            return job.finish is not None
        return bool(job.children) if isinstance(job, ExpandJob) else job.is_done

    # waiting tracks begin

    def _admit(self) -> None:
        """Starts waiting tracks in order of arrival, except those whose prefix another is just computing."""
        held: deque[tuple[Job, Track]] = deque()
        while self.waiting and len(self.running) < self.max_rows:
            job, track = self.waiting.popleft()
            if self._begin(job, track):
                self.running.append((job, track))
            else:
                held.append((job, track))
        self.waiting.extendleft(reversed(held))

    def _begin(self, job: Job, track: Track) -> bool:
        """Takes from the store what it has of the track; False when it is better to wait."""
        given = tuple(track.key[: track.num_given])
        found = self.store.find(given)
        for _, other in self.running:
            if other.num_computed < other.num_given and common_len(given, tuple(other.key[: other.num_given])) > found.num_tokens:
                return False
        track.node = found.node
        self.store.pin(found.node)
        track.num_computed = min(found.num_tokens, track.num_given - 1)
        if found.num_tokens == track.num_given and found.is_node_end and found.node.hidden is not None:
            track.num_computed = track.num_given
            track.hidden.append(found.node.hidden[None])
        elif found.is_node_end and found.num_tokens == track.num_given - 1 and ~track.key[-1] in found.node.paid:
            found.node.paid.discard(~track.key[-1])
            track.is_paid = True
        num_reused = track.num_computed + track.is_paid
        job.count.reused_tokens += num_reused
        self.count.reused_tokens += num_reused
        return True

    def _place(self, track: Track, num_tokens: int) -> Row:
        """The track's row with room for num_tokens, filled with what is computed so far."""
        if track.row is not None:
            track.row = self.rows.grown(track.row, num_tokens, track.num_computed)
            return track.row
        found = self.store.find(tuple(track.key[: track.num_computed]))
        if found.is_node_end and found.node in self.parked:
            track.row = self.rows.grown(self.parked.pop(found.node), num_tokens, track.num_computed)
            return track.row
        track.row = self.rows.take(num_tokens)
        track.row.kv(track.num_computed).copy_(self.store.read(found))
        return track.row

    # one forward pass

    def _next_spans(self) -> list[tuple[Span, Job, Track]]:
        """What this step computes: one token of each generating track, and prompt chunks within the budget."""
        spans, left = [], self.chunk
        for job, track in self.running:
            start, stop = track.num_computed, len(track.key)
            if start == stop:
                continue
            if start < track.num_known:
                stop = min(stop, start + left)
                left -= stop - start
            if start < stop:
                spans.append((Span(self._place(track, stop), start, stop, track.num_prompt), job, track))
        owners = {span.row: (job, track) for span, job, track in spans}
        return [(span, *owners[span.row]) for span in in_order(span for span, _, _ in spans)]

    def _compute(self, spans: Sequence[tuple[Span, Job, Track]]) -> None:
        if not spans:
            return
        plan = StepPlan(self.decoder.config, [span for span, _, _ in spans])
        tokens = torch.tensor([t for span, _, track in spans for t in track.tokens(span.start, span.stop)])
        hidden_TD = self.decoder.forward(tokens, plan.positions, plan.attend)
        at = 0
        for span, job, track in spans:
            num = span.stop - span.start
            self._book(span, job, track)
            self._keep(span, track, hidden_TD[at : at + num])
            at += num

    def _book(self, span: Span, job: Job, track: Track) -> None:
        num = span.stop - span.start
        num_free = max(0, span.stop - max(span.start, track.num_known))  # generated here: paid when drawn
        if track.is_paid and span.start < track.num_given <= span.stop:
            num_free += 1
        flops = self.flops(num, (span.start + 1 + span.stop) / 2)
        job.count.prompt_tokens += num - num_free
        job.count.row_tokens += num
        job.count.flops += flops
        self.count.prompt_tokens += num - num_free
        self.count.flops += flops

    def _keep(self, span: Span, track: Track, hidden_ND: Tensor) -> None:
        """Notes what was computed: the given part goes to the store, rows that the head must see are kept."""
        track.num_computed = span.stop
        given = track.num_given
        if span.start < given <= span.stop:
            last = hidden_ND[given - 1 - span.start].clone()
            node = self.store.put(tuple(track.key[:given]), span.row.kv(given), last)
            if node is not None and track.node is not None:
                self.store.pin(node)
                self.store.unpin(track.node)
                track.node = node
        first = max(span.start, given - 1) if track.options else len(track.key) - 1
        if first < span.stop:
            track.hidden.append(hidden_ND[first - span.start :])

    # logits

    def _use_hidden(self) -> None:
        """Gives every track whose last token is computed what it waits for."""
        ready = [(job, track) for job, track in self.running if track.hidden and track.num_computed == len(track.key)]
        self._extend([(job, track) for job, track in ready if isinstance(job, ExtendJob)])
        self._expand([(job, track) for job, track in ready if isinstance(job, ExpandJob)])
        self._score([(job, track) for job, track in ready if isinstance(job, ScoreJob)])

    def _extend(self, ready: Sequence[tuple[ExtendJob, Track]]) -> None:
        if ready:
            drawn = draw(self._logits(ready), [job.wish() for job, _ in ready])
            for (job, _), token in zip(ready, drawn):
                job.push(token)
            self.count.generated_tokens += len(ready)

    def _expand(self, ready: Sequence[tuple[ExpandJob, Track]]) -> None:
        if ready:
            tokens, log_p = most_likely(self._logits(ready), max(job.ask.num for job, _ in ready))
            for row, (job, _) in enumerate(ready):
                job.push(tokens[row][: job.ask.num], log_p[row][: job.ask.num])

    def _score(self, ready: Sequence[tuple[ScoreJob, Track]]) -> None:
        if not ready:
            return
        hidden_ND = torch.cat([rows for _, track in ready for rows in track.hidden])
        wanted = torch.tensor([token for _, track in ready for token in track.options])
        log_p: list[float] = []
        for start in range(0, len(hidden_ND), HEAD_ROWS):
            some = wanted[start : start + HEAD_ROWS]
            log_p += LogP(self.decoder.logits(hidden_ND[start : start + HEAD_ROWS])).of(torch.arange(len(some)), some).tolist()
        for job, track in ready:
            job.push(track.options, log_p[: len(track.options)])
            del log_p[: len(track.options)]
            self._retire(track)
        retired = {id(track) for _, track in ready}
        self.running = [(job, track) for job, track in self.running if id(track) not in retired]

    def _logits(self, ready: Sequence[tuple[Job, Track]]) -> Tensor:
        """float32 [len(ready), V]: the one waiting row of each."""
        return self.decoder.logits(torch.cat([track.hidden.pop() for _, track in ready]))

    # ends

    def _close(self, ticket: int, job: Job) -> None:
        """Frees all that the job holds."""
        del self.jobs[ticket]
        mine = [track for owner, track in self.running if owner is job]
        self.running = [(owner, track) for owner, track in self.running if owner is not job]
        self.waiting = deque((owner, track) for owner, track in self.waiting if owner is not job)
        for track in mine:
            self._retire(track)
        self.num_calls += 1

    def _retire(self, track: Track) -> None:
        """Stores what the track computed and parks its row, so that an ask that goes on from there copies nothing."""
        kept = min(track.num_computed, track.num_given) if track.options else track.num_computed
        node = self.store.put(tuple(track.key[:kept]), track.row.kv(kept)) if track.row is not None else track.node
        if node is not None and len(track.key) == kept + 1 > track.num_known:
            node.paid.add(~track.key[-1])
        if track.node is not None:
            self.store.unpin(track.node)
        if track.row is None:
            return
        if node is None or node is self.store.root or node in self.parked:
            self.rows.release(track.row)
            return
        self.parked[node] = track.row
        if len(self.parked) > self.max_rows:
            self.rows.release(self.parked.popitem(last=False)[1])
