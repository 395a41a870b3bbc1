"""Rounds: what the generating sequences of a step guess ahead, and what of it they keep.

A round is one sequence in one step. Its tree's rows ride in the step's flat forward beside everybody else's: the first path lies
behind the sequence's own keys, every other branch in pages of its own, with the rows that it shares written twice. So each row reads
what plain decoding would have read, bit for bit, and keeping a path is keeping its pages: nothing is copied or undone. The tokens
that an acceptor chose are then pushed one by one, as if each had been drawn in a step of its own. Without a drafter, and where nothing
is guessed, a tree is empty and a round is one draw.

Rows: row 0 is the last committed token's, row i + 1 that of the tree's token i.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ponder.core.draft import EMPTY, ROOT, Accepted, Context, Controlling, Host, Runner, Speculation, Spent, Target, Tree, Twin, Verified, shortened
from ponder.core.errors import BadField
from ponder.core.probe import Row, rows_of
from ponder.core.rng import TorchRng, hash_seed
from ponder.engine.attend import Span
from ponder.engine.constraint import Matcher
from ponder.engine.jobs import Count, ExtendJob, Job, Track
from ponder.engine.meter import Meter
from ponder.engine.pages import Sequence as Pages
from ponder.engine.sampler import Draw, Drawn, draw, likeliest, proposal_of

Work = tuple[Span, Job, Track]
MAX_IDLE = 1.0  # steps of one row that a round may be charged for what its caller did before it


class Model(Protocol):
    """What a round needs of its process: what it counts, and draws, by themselves or with the logits that they came from."""

    count: Count

    def flops(self, num_tokens: int, context_len: float) -> float: ...

    def _draw(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> list[Drawn]: ...

    def _draw_shown(self, hidden_RD: Tensor, wishes: Sequence[Draw]) -> tuple[list[Drawn], Tensor]: ...

    def _committed(self, track: Track, rows: Sequence[tuple[Pages, int]]) -> None: ...


@dataclass(eq=False)
class Round:
    """stems: (pages, places in the tree) of the first path, then of the branches; matchers: by row, where the answer has a form."""

    job: ExtendJob
    track: Track
    start: int  # place of the last committed token
    tree: Tree = EMPTY
    stems: list[tuple[Pages, tuple[int, ...]]] = field(default_factory=list)
    matchers: list[Matcher | None] = field(default_factory=list)
    hidden: Tensor | None = None  # [1 + M, D]
    readings: dict[str, list[Row]] = field(default_factory=dict)
    drawn: Sequence[Drawn] = ()
    wished: Sequence[Draw] = ()
    num_drawn: int = 0
    logits: Tensor | None = None  # [1 + M, V], where anybody looks at them

    @property
    def request(self) -> int:
        return self.track.order[1]

    @property
    def span(self) -> Span:
        """Of the last committed token alone."""
        assert self.track.pages is not None
        return Span(self.track.pages, self.start, self.start + 1, self.track.num_prompt)

    def computed(self, path: Sequence[int]) -> list[tuple[Pages, int]]:
        """Of the last committed token and those of a path: the pages of the span that computed it, and its place."""
        of = {i: pages for pages, places in self.stems for i in places}
        return [(self.stems[0][0], self.start), *((of[i], self.start + self.tree.depths[i]) for i in path)]

    def wishes(self) -> list[Draw]:
        """What plain decoding would wish for at every row."""
        tree, first = self.tree, self.job.wish()
        if not len(tree):
            return [first]
        paths = [[tree.tokens[j] for j in tree.path(i)] for i in range(len(tree))]
        return [first, *(self.job.wish(path, matcher) for path, matcher in zip(paths, self.matchers[1:]))]

    def commit(self, path: Sequence[int], tokens: Sequence[int], drawn_as: Callable[[int, int], Drawn]) -> int:
        """Pushes tokens until the answer ends and keeps the keys that go with them. Returns how many were drawn."""
        taken = 0
        for row, token in zip((0, *(i + 1 for i in path)), tokens):
            if row:
                self.job.matcher = self.matchers[row]
            for name, rows in self.readings.items():
                self.job.seen[name] = rows[row]
            self.job.push(drawn_as(row, token))
            taken += 1
            if self.job.finish is not None:
                break
        if self.stems:
            self._keep(path[taken - 2] if taken > 1 else ROOT, self.start + taken)
        return taken

    def target(self) -> Target:
        return Target([drawn.token for drawn in self.drawn], self._log_p, self.wished[0].sampling.temperature == 0)

    def rng(self) -> TorchRng:
        return TorchRng(hash_seed("accept", self.wished[0].seed, self.wished[0].position))

    def drawn_as(self, row: int, token: int) -> Drawn:
        """What a draw of that token at that row would have said."""
        if self.drawn[row].token == token:
            return self.drawn[row]
        assert self.logits is not None
        (drawn,) = draw(self.logits[row : row + 1], [replace(self.wished[row], forced=token)])
        if drawn.log_q > -math.inf:
            return drawn
        # an acceptor kept what the target itself would never draw there: a greedy answer is as certain as ever, any other is weighed by the model
        return replace(drawn, log_q=0.0 if self.wished[row].sampling.temperature == 0 else drawn.log_p)

    def _log_p(self, row: int) -> Tensor:
        assert self.logits is not None
        return proposal_of(self.logits[row : row + 1], self.wished[row])

    def _keep(self, last: int, num_computed: int) -> None:
        kept = next((pages for pages, places in self.stems if last in places), self.stems[0][0])
        for pages, _ in self.stems:
            if pages is not kept:
                pages.release()
        kept.num_tokens = self.track.num_computed = num_computed
        self.track.pages = kept


class Rounds:
    """The rounds of a process, of at most max_rows sequences at once, branches included.

    take(pages, num): makes room for num tokens in all, at the cost of idle prefixes alone. ahead(track): how many tokens after the next
    may be computed in one step. meter: of the process's steps. is_here(span): whether its row was computed before this step asked for it.

    Where it was, no guess can ride beside it any more. The drafter is asked all the same, while the row is being computed: where it has a
    guess that is worth a step, the process does not work ahead behind this one, and the next step's guesses have their place.
    """

    def __init__(
        self, speculation: Speculation | None, host: Host, take: Callable[[Pages, int], bool], ahead: Callable[[Track], int], *, max_rows: int,
        meter: Meter, is_here: Callable[[Span], bool] = lambda span: False,
    ) -> None:  # fmt: skip
        self.host, self.take, self.ahead, self.max_rows, self.meter, self.is_here = host, take, ahead, max_rows, meter, is_here
        self.is_in_place = False  # guesses are written where the target writes next: no row may be computed before them
        self.is_wanted = False  # guesses were for a row of this step that is here already: the next step is to have some
        self.idle_since: float | None = None  # when the draw came behind which guesses kept the process from working ahead
        self.num_spare = 0  # branches that this step may still have
        self.running: dict[Pages, Round] = {}  # of this step, by the pages of each stem
        self.told: dict[int, list[int]] = {}  # request -> prompt and completion
        self.began = self.draft_seconds = 0.0
        self.num_rows: int | None = None  # of this step, where nobody reads a prompt
        self.speculation = speculation
        if speculation is not None:
            self.needs = speculation.drafter.needs
            self.drafting = speculation.drafter.open(replace(host, runner=self._lent, goes_on=lambda *asked: self.controlling.goes_on(*asked)))
            self.is_shown = self.needs.num_top > 0 or speculation.acceptor.reads == "log_p"

    def _lent(self, twin: Twin) -> Runner:
        runner = self.host.runner(twin)
        self.is_in_place = self.is_in_place or runner.is_in_place
        return runner

    @cached_property
    def controlling(self) -> Controlling:
        """Opened with the process or at its first step: it may want to measure what steps cost."""
        assert self.speculation is not None
        return self.speculation.control.open(self.meter.costs)

    def open(self) -> None:
        """What would else be done at the first step."""
        if self.speculation is not None:
            _ = self.controlling

    @property
    def name(self) -> str:
        """What a model's id says of answers that are not plain decoding's."""
        if self.speculation is None or self.speculation.acceptor.is_identical:
            return ""
        return f"/drafted-{hash_seed(repr(self.speculation)):016x}"

    def forget(self, request: int) -> None:
        """The request is over."""
        if self.speculation is not None:
            self.told.pop(request, None)
            self.drafting.forget(request)
            self.controlling.forget(request)

    # before the forward pass

    def widen(self, works: list[Work]) -> list[Work]:
        """The step's spans with those of trees, in no order."""
        if self.speculation is None:
            return works
        began, idle_since, self.idle_since = self.meter.clock(), self.idle_since, None
        self.running.clear()
        self.is_wanted = False
        num_rows, self.num_spare = sum(span.stop - span.start for span, _, _ in works), self.max_rows - len(works)
        self.num_rows = num_rows if all(span.is_single for span, _, _ in works) else None
        able = [
            (job, track, span.start)
            for span, job, track in works
            if isinstance(job, ExtendJob) and job.num_left > 1 and span.is_single and span.stop == len(track.key)
        ]
        rounds = self._drafted(able, num_rows)
        found = [work for work in works if work[0].sequence not in self.running]
        found += [(span, round.job, round.track) for round in rounds for span in spans_of(round)]
        self.began = self.meter.clock()
        if idle_since is not None:
            self.draft_seconds = self.began - began + min(began - idle_since, MAX_IDLE * self.meter.one) + self.meter.waiting
        else:
            self.draft_seconds = 0.0 if all(self.is_here(span) for span, _, _ in works) else self.began - began
        return found

    @property
    def may_look_ahead(self) -> bool:
        """Whether the rows after this step's may be computed before anybody asks for them: no guess is in the way."""
        return self.speculation is None or not (self.running or self.is_wanted or self.is_in_place)

    def _drafted(self, able: Sequence[tuple[ExtendJob, Track, int]], num_rows: int) -> list[Round]:
        """Rounds of those that have something to try in this step, with their trees laid out. able: with the place of the last committed token."""
        rooms = self.controlling.rooms([track.order[1] for _, track, _ in able])
        begun = [(Round(*one), room) for one, room in zip(able, rooms, strict=True) if room > 0]
        if not begun:
            return []
        asked = [(round, self._context(round, room)) for round, room in begun]
        for (round, context), tree in zip(asked, self.drafting.propose([context for _, context in asked]), strict=True):
            round.tree = self._fitting(round, tree, context)
        rounds = [round for round, _ in asked]
        trees = shortened(self.controlling, [round.request for round in rounds], [round.tree for round in rounds], num_rows)
        for round, tree in zip(rounds, trees, strict=True):
            round.tree = tree
        tried = [round for round in rounds if len(round.tree)]
        late = [round for round in tried if self.is_here(round.span)]
        self.is_wanted = bool(late)
        return [round for round in tried if round not in late and self._lay(round)]

    def _context(self, round: Round, room: int) -> Context:
        job, track = round.job, round.track
        if round.request not in self.told:
            self.told[round.request] = track.tokens(0, track.num_prompt)
        tokens = self.told[round.request]
        tokens += job.tokens[len(tokens) - track.num_prompt :]
        depth = min(room, job.num_left - 1, self.ahead(track))
        return Context(
            request=round.request, tokens=tokens, num_prompt=track.num_prompt, room=room, max_depth=depth, seed=job.ask.seed,
            sampling=job.ask.sampling, drift=job.ask.drift,
        )  # fmt: skip

    def _fitting(self, round: Round, tree: Tree, context: Context) -> Tree:
        """What of a tree could be accepted at all: within its room, without ends of answers, in the answer's form."""
        if len(tree) and max(tree.tokens) >= self.host.vocab_size:
            raise BadField(f"draft holds token {max(tree.tokens)}: this model has {self.host.vocab_size}; draft with the same tokens")
        tree = tree.first(context.room)
        after: dict[int, Matcher | None] = {ROOT: round.job.matcher}

        def is_kept(i: int) -> bool:
            token, before = tree.tokens[i], after[tree.parents[i]]
            if tree.depths[i] > context.max_depth or token in self.host.eos_ids:
                return False
            found = None if before is None else before.after(token)
            if before is None or found is not None:
                after[i] = found
            return i in after

        kept = tree.pruned(is_kept)
        round.matchers = list(after.values())
        return kept

    def _lay(self, round: Round) -> bool:
        """Pages for every stem of the tree; for the first alone when there are not enough, and False when not even for that."""
        own = round.track.pages
        assert own is not None
        stems = stems_of(round.tree)
        if not self.take(own, round.start + 1 + len(stems[0])):
            return False
        round.stems = [(own, stems[0])]
        twigs = [own.branch() for _ in stems[1:]] if len(stems) - 1 <= self.num_spare else []
        if len(twigs) == len(stems) - 1 and all(
            self.take(twig, round.start + 1 + round.tree.depths[places[-1]]) for twig, places in zip(twigs, stems[1:])
        ):  # fmt: skip
            round.stems += zip(twigs, stems[1:])
            self.num_spare -= len(twigs)
        else:
            for twig in twigs:
                twig.release()
            round.matchers = [round.matchers[i + 1] for i in (ROOT, *stems[0])]
            round.tree = round.tree.pruned(stems[0].__contains__)
            round.stems = [(own, tuple(range(len(round.tree))))]
        self.running.update((pages, round) for pages, _ in round.stems)
        return True

    def tokens(self, span: Span, track: Track) -> list[int]:
        """Of a span that `widen` returned."""
        round = self.running.get(span.sequence)
        if round is None:
            return track.tokens(span.start, span.stop)
        places = next(places for pages, places in round.stems if pages is span.sequence)
        drafted = [round.tree.tokens[i] for i in places]
        return drafted if span.sequence is not track.pages else [*track.tokens(round.start, round.start + 1), *drafted]

    # after it

    def gathered(self, works: Sequence[Work], hidden_TD: Tensor) -> Iterator[tuple[Span, Job, Track, Tensor]]:
        """Every span with its hidden rows as plain decoding would have had it; what was computed beside goes to the rounds."""
        parts: dict[Pages, Tensor] = {}
        at = 0
        for span, job, track in works:
            hidden_ND = hidden_TD[at : at + span.stop - span.start]
            at += span.stop - span.start
            if span.sequence not in self.running:
                yield span, job, track, hidden_ND
            else:
                parts[span.sequence] = hidden_ND
        for round in dict.fromkeys(self.running.values()):
            own = round.stems[0][0]
            round.hidden = parts[own]
            if len(round.stems) > 1:  # a device that works ahead waits here for the list of rows
                order = torch.tensor([ROOT, *(i for _, places in round.stems for i in places)], device=hidden_TD.device)
                round.hidden = torch.cat([parts[pages] for pages, _ in round.stems])[order.argsort()]
            yield Span(own, round.start, round.start + 1, round.track.num_prompt), round.job, round.track, round.hidden[:1]

    def extend(self, model: Model, ready: Sequence[tuple[ExtendJob, Track]], *, is_plain: bool = False) -> None:
        """Gives every job its next tokens. is_plain: for none of them anything was guessed, nor will be."""
        rounds = []
        for job, track in ready:
            waiting = track.hidden.pop()
            round = self.running.get(track.pages) if track.pages is not None else None
            rounds.append(round or Round(job, track, len(track.key) - 1, hidden=waiting))
        hidden = [round.hidden for round in rounds if round.hidden is not None]
        hidden_RD = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        self._read_probes(rounds, hidden_RD)
        wishes = [wish for round in rounds for wish in round.wishes()]
        if self.speculation is None or is_plain:
            for round, drawn in zip(rounds, model._draw(hidden_RD, wishes), strict=True):
                round.drawn = [drawn]
                model.count.generated_tokens += round.commit((), (drawn.token,), round.drawn_as)
            return
        shown = model._draw_shown(hidden_RD, wishes) if self.is_shown else (model._draw(hidden_RD, wishes), None)
        self._accept(model, rounds, wishes, shown)

    def _read_probes(self, rounds: Sequence[Round], hidden_RD: Tensor) -> None:
        for name, probe in {probe.name: probe for round in rounds for probe in round.job.ask.probes}.items():
            readers = [round for round in rounds if name in round.job.readings]
            rows = iter(rows_of(probe.read(torch.cat([round.hidden for round in readers if round.hidden is not None]))))
            for round in readers:
                round.readings[name] = [next(rows) for _ in range(1 + len(round.tree))]

    def _accept(self, model: Model, rounds: Sequence[Round], wishes: Sequence[Draw], shown: tuple[list[Drawn], Tensor | None]) -> None:
        assert self.speculation is not None
        if not self.may_look_ahead and self.meter.looks_ahead:
            self.idle_since = self.meter.clock()
        (found, logits_RV), news, lo = shown, [], 0
        for round in rounds:
            hi = lo + 1 + len(round.tree)
            round.drawn, round.wished, round.logits = found[lo:hi], wishes[lo:hi], None if logits_RV is None else logits_RV[lo:hi]
            news.append(self._ended(round))
            book(model, round, news[-1])
            if round.stems:
                model._committed(round.track, round.computed(news[-1].path[: round.num_drawn - 1]))
            lo = hi
        self.drafting.observe(news)
        spent = None
        if self.num_rows is not None:
            num = sum(len(round.tree) for round in rounds)
            seconds = self.meter.clock() - self.began
            spent = Spent(num_rows=self.num_rows + num, seconds=seconds, num_drafted=num, draft_seconds=self.draft_seconds)
        self.controlling.learn(news, spent)
        self.running.clear()

    def _ended(self, round: Round) -> Verified:
        """What became of a round, whose tokens are pushed."""
        assert self.speculation is not None
        tree, accepted, job, num = round.tree, Accepted((), round.drawn[0].token), round.job, len(round.job.tokens)
        if len(tree):
            accepted = self.speculation.acceptor.accept(tree, round.target(), round.rng())
        round.num_drawn = round.commit(accepted.path, (*(tree.tokens[i] for i in accepted.path), accepted.token), round.drawn_as)
        tokens = tuple(job.tokens[num:])
        num_top, hidden = self.needs.num_top, round.hidden if self.needs.hidden else None
        top = None if not num_top or round.logits is None else likeliest(round.logits, num_top)
        return Verified(request=round.request, tree=tree, path=accepted.path[: len(tokens)], tokens=tokens, top=top, hidden=hidden)


def book(model: Model, round: Round, verified: Verified) -> None:
    """Counts a round: its tokens as if each had been drawn alone, its draft apart."""
    num = len(round.tree)
    model.count.generated_tokens += round.num_drawn
    if not num:
        return
    flops = model.flops(num, round.start + 1 + num / 2)
    for count in (model.count, round.job.count):
        count.drafted_tokens += num
        count.accepted_tokens += len(verified.path)
        count.flops += flops
    round.job.count.row_tokens += num


def stems_of(tree: Tree) -> list[tuple[int, ...]]:
    """The tree cut into paths: the first from the root by first children, each other one from where it leaves an earlier one."""
    found: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for start in range(len(tree)):  # token 0 always follows the root
        if start in seen:
            continue
        stem = [start]
        while tree.children[stem[-1]]:
            stem.append(tree.children[stem[-1]][0])
        seen.update(stem)
        found.append(tuple(stem))
    return found


def spans_of(round: Round) -> list[Span]:
    """A span for each stem; those that others leave from write for them too."""
    owner = {i: pages for pages, places in round.stems for i in (places if pages is not round.stems[0][0] else (ROOT, *places))}
    copies: dict[Pages, list[tuple[Pages, int, int]]] = {pages: [] for pages, _ in round.stems}
    for pages, places in round.stems[1:]:
        for depth, i in enumerate((ROOT, *round.tree.ancestors(places[0]))):
            copies[owner[i]].append((pages, round.start + depth, round.start + depth + 1))
    spans = []
    for pages, places in round.stems:
        is_first = pages is round.stems[0][0]
        start = round.start if is_first else round.start + round.tree.depths[places[0]]
        spans.append(Span(pages, start, start + len(places) + is_first, round.track.num_prompt, copies=tuple(copies[pages])))
    return spans
