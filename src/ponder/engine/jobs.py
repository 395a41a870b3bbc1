"""Asks under way: what each wants from the step loop, and the answer it becomes.

A job owns tracks; a track is one token sequence to compute. The loop (engine.process) computes tokens and hands each ready
track its logits' result; only this file knows what an ask means.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ponder.core.asks import (
    Answer,
    Ask,
    Confer,
    Expand,
    Expansion,
    Extend,
    Extension,
    Extensions,
    Judge,
    Prefix,
    Prompt,
    Read,
    Readings,
    Score,
    Scores,
    TokenLogP,
)
from ponder.core.beside import Writer
from ponder.core.budget import Cost
from ponder.core.errors import BadField, NotOffered, PromptTooLong
from ponder.core.formats import Tokenizer
from ponder.core.probe import Row
from ponder.engine.constraint import Matcher, forms_of
from ponder.engine.kv import Node
from ponder.engine.pages import Sequence as Pages
from ponder.engine.sampler import Draw, Drawn
from ponder.engine.text import CompletionText

UNLIMITED = 1 << 60


def key_of(prompt_ids: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """The store's key of a prefix: see engine.kv."""
    return (*prompt_ids, *(~token for token in tokens))


@dataclass(eq=False)
class Track:
    """One sequence: `key` is all of its tokens, the first num_computed of which have keys and values in `pages`.

    Tokens before num_given are shared knowledge and go to the store; those before num_known were not generated here.
    """

    key: list[int]
    num_prompt: int
    num_given: int
    num_known: int
    options: tuple[int, ...] = ()  # tokens whose log-probability is wanted, the first of them after num_given
    keeps_all: bool = False  # its rows from the last given token on are wanted, not the last alone
    is_private: bool = False  # what comes after its given tokens is nobody else's: it never goes to the store
    num_computed: int = 0
    num_seen: int = 0  # computed before the track was last put back among the waiting
    is_paid: bool = False  # the last given token's computation was paid for when it was generated
    pages: Pages | None = None  # while it runs
    order: tuple[int, int, int] = (0, 0, 0)  # priority (negative), arrival, place in its job
    node: Node | None = None  # pinned in the store while the track lives
    hidden: list[Tensor] = field(default_factory=list)  # rows [n, D] that wait for the head

    def tokens(self, start: int, stop: int) -> list[int]:
        return [t if t >= 0 else ~t for t in self.key[start:stop]]


@dataclass
class Count:
    """What a job has cost so far."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    flops: float = 0.0
    row_tokens: int = 0  # computed by the last step

    def cost(self) -> Cost:
        return Cost(
            prompt_tokens=self.prompt_tokens, reused_tokens=self.reused_tokens, generated_tokens=self.generated_tokens,
            drafted_tokens=self.drafted_tokens, accepted_tokens=self.accepted_tokens, calls=1, flops=self.flops,
        )  # fmt: skip


class ExtendJob:
    """Generates. `limits` are (number of new tokens, finish) in order of precedence."""

    def __init__(self, ask: Extend, prompt_ids: Sequence[int], tokenizer: Tokenizer, limits: Sequence[tuple[int, str]]) -> None:
        self.ask, self.tokenizer, self.count = ask, tokenizer, Count()
        key = list(key_of(prompt_ids, ask.prefix.tokens))
        self.tracks = [Track(key, len(prompt_ids), len(key), len(key))]
        self.text = CompletionText(bytes_of(tokenizer, ask.prefix.tokens), ask.prefix.prompt.stop, ask.until)
        self.matcher = matcher_of(ask.prefix, tokenizer)
        foreign = [token for token, _ in ask.sampling.logit_bias if token >= len(tokenizer.pieces)]
        if foreign:
            raise BadField(f"logit_bias names token {foreign[0]}: this model's are 0 to {len(tokenizer.pieces) - 1}; bias one of those")
        if ask.forced and (self.matcher is not None or max(ask.forced) >= len(tokenizer.pieces)):
            raise BadField(f"extend forced={ask.forced}: must be tokens of this model, below {len(tokenizer.pieces)}, and the prompt without a form")
        self.logprobs: list[TokenLogP] = []
        self.tokens = list(ask.prefix.tokens)
        self.sums = [ask.prefix.log_p, ask.prefix.log_q, ask.prefix.certainty]
        self.readings = {probe.name: list(dict(ask.prefix.readings).get(probe.name, ())) for probe in ask.probes}
        self.seen: dict[str, Row] = {}  # by each probe, in the state that the next token is drawn from
        self.num_left, self.end = min(limits, key=lambda limit: limit[0])  # the first of equals
        self.finish = "stop" if self.text.cut is not None else self.end if self.num_left <= 0 else None

    @property
    def is_done(self) -> bool:
        return self.finish is not None

    def wish(self, path: Sequence[int] = (), matcher: Matcher | None = None) -> Draw:
        """For the next token, or the one after `path`, whose matcher then is to be given too."""
        sampling = self.ask.sampling
        seen = (*self.tokens, *path) if sampling.has_penalties else ()
        at, ask = len(self.tokens) + len(path), self.ask
        forced = ask.forced[at] if at < len(ask.forced) else None
        return Draw(ask.seed, at, sampling, matcher if path else self.matcher, seen, ask.logprobs, ask.drift, forced)

    def push(self, drawn: Drawn) -> None:
        """Takes the next token; sets `finish` when it is the last."""
        if self.matcher is not None:
            if self.matcher.is_dead:  # as the draw found out, whose token is no part of the answer
                self.count.generated_tokens += 1
                self.finish = "length"
                return
            self.matcher.push(drawn.token)
        self.tokens.append(drawn.token)
        self.tracks[0].key.append(~drawn.token)
        for name, row in self.seen.items():
            self.readings[name].append(row)
        self.count.generated_tokens += 1
        self.num_left -= 1
        certainty = drawn.certainty if self.ask.certainty else 0.0
        self.sums = [total + x for total, x in zip(self.sums, (drawn.log_p, drawn.log_q, certainty))]
        found = self.text.push(self.tokenizer.pieces[drawn.token])
        if self.ask.logprobs is not None:
            self.logprobs.append(TokenLogP(drawn.token, drawn.log_p, drawn.top))
        self.finish = "stop" if drawn.token in self.tokenizer.eos_ids else found or (self.end if self.num_left <= 0 else None)
        if self.finish is None and self.matcher is not None and self.matcher.is_dead:
            self.finish = "length"

    def so_far(self) -> Extension:
        """What is safe to show of an answer under way (core.roles.Process: partial)."""
        prefix = Prefix(self.ask.prefix.prompt, tuple(self.tokens), self.text.safe, *self.sums)
        return Extension(prefix, "limit", self.count.cost(), tuple(self.logprobs))

    def answer(self) -> Extension:
        finish = self.finish or "budget"
        if self.matcher is not None and finish in ("until", "limit"):
            self.matcher.keep()
        log_p, log_q, certainty = self.sums
        prefix = Prefix(
            self.ask.prefix.prompt, tuple(self.tokens), self.text.text, log_p, log_q, certainty, None if finish in ("until", "limit") else finish,
            tuple((name, tuple(rows)) for name, rows in self.readings.items()),
        )  # fmt: skip
        return Extension(prefix, finish, self.count.cost(), tuple(self.logprobs))


class ExpandJob:
    """Lists the most likely next tokens. allowed: bool [V], those that the prefix's form admits; None for all."""

    def __init__(self, ask: Expand, prompt_ids: Sequence[int], tokenizer: Tokenizer, num_left: int) -> None:
        self.tokenizer, self.count, self.num, self.num_left = tokenizer, Count(), ask.num, num_left
        matcher = matcher_of(ask.prefix, tokenizer)
        self.allowed = None if matcher is None else matcher.allowed()
        if self.allowed is not None and not bool(self.allowed.any()):
            raise BadField(f"expand of a prefix of {len(ask.prefix.tokens)} tokens: no token may follow it in its form; extend it, which ends it")
        self.ask = ask if matcher is None else replace(ask, num=1 << 30)  # all, of which `push` takes the allowed ones
        key = list(key_of(prompt_ids, ask.prefix.tokens))
        self.tracks = [Track(key, len(prompt_ids), len(key), len(key))]
        self.children: tuple[Prefix, ...] = ()

    @property
    def is_done(self) -> bool:
        return bool(self.children)

    def push(self, tokens: Sequence[int], log_p: Sequence[float]) -> None:
        data = bytes_of(self.tokenizer, self.ask.prefix.tokens)
        admitted = None if self.allowed is None else set(self.allowed.nonzero()[:, 0].tolist())
        kept = ((token, x) for token, x in zip(tokens, log_p) if admitted is None or token in admitted)
        self.children = tuple(self._child(data, token, x) for token, x in itertools.islice(kept, self.num))

    def _child(self, data: bytes, token: int, log_p: float) -> Prefix:
        prefix = self.ask.prefix
        text = CompletionText(data, prefix.prompt.stop, ())
        is_stopped = text.push(self.tokenizer.pieces[token]) is not None or token in self.tokenizer.eos_ids
        finish = "stop" if is_stopped else "length" if self.num_left <= 1 else None
        grown = replace(prefix, tokens=(*prefix.tokens, token), text=text.text, finish=finish, readings=())
        return replace(grown, log_p=prefix.log_p + log_p, log_q=prefix.log_q + log_p)

    def answer(self) -> Expansion:
        return Expansion(self.children, self.count.cost())


class ScoreJob:
    """Log-probability of given continuations: one track per option; the prefix is computed once, by the first."""

    def __init__(self, ask: Score, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self.ask, self.count = ask, Count()
        key = key_of(prompt_ids, ask.prefix.tokens)
        self.options = [tuple(tokenizer.encode(option)) for option in ask.options]
        self.tracks = [
            Track([*key, *(~t for t in option[:-1])], len(prompt_ids), len(key), len(key) + len(option) - 1, option, True)
            for option in dict.fromkeys(self.options)
            if option
        ]
        self.log_p: dict[tuple[int, ...], float] = {(): 0.0}
        self.is_cancelled = False

    @property
    def is_done(self) -> bool:
        return len(self.log_p) > len(self.tracks)

    def push(self, option: tuple[int, ...], log_p: Sequence[float]) -> None:
        self.log_p[option] = math.fsum(log_p)

    def answer(self) -> Scores:
        return Scores(tuple(self.log_p[option] for option in self.options) if self.is_done else (), self.count.cost())


class ReadJob:
    """What a probe sees at given places: one track, whose rows from the first of them on are computed again."""

    def __init__(self, ask: Read, prompt_ids: Sequence[int]) -> None:
        self.ask, self.count = ask, Count()
        key = list(key_of(prompt_ids, ask.prefix.tokens[: max(ask.places)]))
        self.first = min(ask.places)
        self.tracks = [Track(key, len(prompt_ids), len(prompt_ids) + self.first, len(key), keeps_all=True)]
        self.rows: tuple[Row, ...] = ()

    @property
    def is_done(self) -> bool:
        return bool(self.rows)

    def push(self, rows: Sequence[Row]) -> None:
        """Takes a row for every place from the first on."""
        self.rows = tuple(rows[place - self.first] for place in self.ask.places)

    def answer(self) -> Readings:
        return Readings(self.rows, self.count.cost())


class ConferJob:
    """Generates several texts, whose tracks read each other. Its members count together."""

    def __init__(self, ask: Confer, members: Sequence[ExtendJob]) -> None:
        self.ask, self.members, self.count = ask, members, Count()
        self.tracks = [member.tracks[0] for member in members]
        ids = [track.tokens(0, track.num_prompt) for track in self.tracks]
        self.num_common = next((i for i, some in enumerate(zip(*ids)) if len(set(some)) > 1), min(map(len, ids)))
        self.writers = [Writer(len(some) - self.num_common, ask.separator.encode()) for some in ids]
        for member, track in zip(members, self.tracks):
            member.count = self.count
            track.is_private, track.num_given = True, track.num_prompt
        self.write()

    @property
    def is_done(self) -> bool:
        finishes = [member.finish for member in self.members]
        return None not in finishes or sum(finish in ("stop", "length") for finish in finishes) >= (self.ask.enough or len(finishes))

    def write(self) -> None:
        """Notes what the members have drawn."""
        for member, writer in zip(self.members, self.writers):
            for token in member.tokens[writer.num :]:
                writer.push(member.tokenizer.pieces[token])
            if member.finish is not None:
                writer.end()

    def due(self) -> list[int]:
        """Members that draw next: those that are behind all others."""
        nums = {i: len(member.tokens) for i, member in enumerate(self.members) if member.finish is None}
        return [i for i, num in nums.items() if num == min(nums.values())]

    def answer(self) -> Extensions:
        is_done = self.is_done
        for member in self.members:
            member.finish = member.finish or ("limit" if is_done else "budget")
        return Extensions(tuple(replace(member.answer(), cost=Cost()) for member in self.members), self.count.cost())


Job = ExtendJob | ExpandJob | ScoreJob | ReadJob | ConferJob


def job_of(
    ask: Ask, ids_of: Callable[[Prompt], list[int]], tokenizer: Tokenizer, *, context_len: int, max_tokens: int | None,
) -> Job:  # fmt: skip
    """What is to be computed for an ask. ids_of: tokens of a prompt. Raises BadField for a Judge ask, a final prefix, a foreign token;
    PromptTooLong."""
    if isinstance(ask, Judge):
        raise BadField("a process answers Extend, Expand, Score and Read; a Judge ask goes to its verifier")
    if isinstance(ask, Confer):
        raise NotOffered("this process computes every answer for itself: one that reads others' while they are written (Confer) it cannot give")
    prefix = ask.prefix
    if prefix.is_final and not isinstance(ask, Read):
        raise BadField(f"prefix is final ({prefix.finish}): it cannot be extended, expanded or scored")
    foreign = [t for t in prefix.tokens if not 0 <= t < len(tokenizer.pieces)]
    if foreign:
        raise BadField(f"prefix holds token {foreign[0]}: this model has {len(tokenizer.pieces)}; the prefix is another model's")
    ids = ids_of(prefix.prompt)
    if len(ids) + 1 > context_len:
        raise PromptTooLong(f"prompt of {len(ids)} tokens: the context holds {context_len} and an answer needs one; shorten the prompt")
    num_left = min(prefix.prompt.max_tokens, context_len - len(ids)) - len(prefix.tokens)
    if isinstance(ask, Read):
        if len(ids) + max(ask.places) > context_len:
            raise PromptTooLong(f"place {max(ask.places)} after a prompt of {len(ids)} tokens: the context holds {context_len}; shorten it")
        return ReadJob(ask, ids)
    if isinstance(ask, Extend):
        own = UNLIMITED if ask.max_tokens is None else ask.max_tokens
        limits = ((num_left, "length"), (own, "limit"), (UNLIMITED if max_tokens is None else max_tokens, "budget"))
        return ExtendJob(ask, ids, tokenizer, limits)
    if isinstance(ask, Expand):
        return ExpandJob(ask, ids, tokenizer, num_left)
    job = ScoreJob(ask, ids, tokenizer)
    longest = max((len(track.key) + 1 for track in job.tracks), default=0)
    if longest > context_len:
        raise PromptTooLong(f"prefix and option of {longest} tokens: the context holds {context_len}; shorten the option")
    return job


def matcher_of(prefix: Prefix, tokenizer: Tokenizer) -> Matcher | None:
    """Where `prefix` stands in its form. Raises BadField for a form that cannot be honoured, or one that the prefix has left."""
    return None if prefix.prompt.form is None else forms_of(tokenizer).matcher(prefix.prompt.form, prefix.tokens)


def bytes_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    """The bytes that a completion's tokens stand for."""
    return b"".join([tokenizer.pieces[token] for token in tokens])


def partial_answer(job: Job) -> Answer:
    """What a cancelled job leaves: an Extension with finish "budget", an Expansion, Scores or Readings without content."""
    if isinstance(job, ExtendJob):
        job.finish = "budget"
    return job.answer()
