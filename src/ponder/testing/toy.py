"""A language model small enough to enumerate, and a process that answers asks with it: ground truth for every guarantee."""

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from ponder.core.asks import (
    Answer,
    Ask,
    Choice,
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
    Sampling,
    Score,
    Scores,
    TokenLogP,
)
from ponder.core.beside import Writer
from ponder.core.budget import Cost
from ponder.core.errors import BadField, PromptTooLong
from ponder.core.noise import drifted
from ponder.core.probe import Probe, Row, checkpoint_of, rows_of
from ponder.core.rng import Rng, hash_seed
from ponder.core.roles import Progress
from ponder.core.weights import inverse_cdf
from ponder.testing.toy_jobs import Group, Job

DEAD = float("-inf")
FLOOR = math.log(2.0**-126)


class SmallLM(ABC):
    """A language model of few enough tokens to list: token i < V is alphabet[i], token V ends the answer."""

    alphabet: Sequence[str]

    @property
    @abstractmethod
    def key(self) -> int:
        """Equal only for equal models."""

    @abstractmethod
    def encode(self, text: str) -> list[int | None]:
        """Tokens that spell `text`; None for a piece that has none."""

    @abstractmethod
    def log_p(self, prefix: Prefix) -> tuple[float, ...]:
        """Log-probabilities [V + 1] of the next token."""

    @abstractmethod
    def row(self, last: int | None) -> tuple[float, ...]:
        """Log-probabilities [V + 1] after token `last` alone; None is the start."""

    @property
    def end(self) -> int:
        return len(self.alphabet)

    def beside(self, heard: tuple[int, ...]) -> "SmallLM":
        """The model to which those tokens of other answers stand before the newest of its own; itself where it reads the last token alone."""
        return self

    def hidden(self, prefix: Prefix, place: int) -> torch.Tensor:
        """float32 [2 V + 10]: the state after `place` tokens. How often each token was said, which was the last, then noise
        that depends on all that was read, so that most of a state says nothing."""
        said = prefix.tokens[:place]
        counts = [float(said.count(v)) for v in range(self.end + 1)]
        last = [float(bool(said) and said[-1] == v) for v in range(self.end + 1)]
        noise = [hash_seed("toy-state", rendered(prefix.prompt), said, i) / 2**62 - 1 for i in range(8)]
        return torch.tensor([*counts, *last, *noise])

    def allowed(self, prefix: Prefix) -> frozenset[int]:
        """Tokens that may come next: all, or under a Choice those on the way to an option that the alphabet can spell."""
        form = prefix.prompt.form
        if form is None:
            return frozenset(range(self.end + 1))
        if not isinstance(form, Choice):
            raise BadField(f"form {form}: a toy process knows Choice alone; list the answers")
        options = [option for option in (self.encode(text) for text in form.options) if None not in option]
        done = list(prefix.tokens)
        return frozenset((*option, self.end)[len(done)] for option in options if option[: len(done)] == done)  # type: ignore[misc]

    def proposal(self, prefix: Prefix, sampling: Sampling) -> tuple[float, ...]:
        """Log-probabilities [V + 1] that the next token is drawn from; those of the model are its logits."""
        allowed = self.allowed(prefix)
        biased = penalised(self.log_p(prefix), sampling, prefix.tokens)
        return transformed(tuple(x if v in allowed else DEAD for v, x in enumerate(biased)), sampling)

    def grown(self, prefix: Prefix, token: int, log_q: float = 0.0) -> Prefix:
        """`prefix` with one more token; final when the token ends it, completes a stop string or is the last allowed."""
        prompt, log_p = prefix.prompt, self.log_p(prefix)
        text = prefix.text + (self.alphabet[token] if token != self.end else "")
        cut = min((at for at in (text.find(s) for s in prompt.stop) if at >= 0), default=None)
        is_last = len(prefix.tokens) + 1 >= prompt.max_tokens
        finish = "stop" if token == self.end or cut is not None else "length" if is_last else None
        grown = replace(prefix, tokens=(*prefix.tokens, token), text=text[:cut], finish=finish, readings=())
        return replace(grown, log_p=prefix.log_p + log_p[token], log_q=prefix.log_q + log_q)

    def completions(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Prefix]:
        """Every final prefix that can be drawn; log_p and log_q are exact."""
        open_prefixes = [Prefix(prompt)]
        while open_prefixes:
            prefix = open_prefixes.pop()
            if prefix.is_final:
                yield prefix
            else:
                log_q = self.proposal(prefix, sampling or Sampling())
                open_prefixes.extend(self.grown(prefix, v, log_q[v]) for v in range(self.end + 1) if log_q[v] > DEAD)


@dataclass(frozen=True)
class ToyLM(SmallLM):
    """Order-1 model: the next token depends on the last character only. Token i < V is alphabet[i]; token V ends the answer."""

    alphabet: str  # V distinct characters
    table: tuple[tuple[float, ...], ...]  # [1 + V][V + 1] probabilities: rows are start, then each character

    def __post_init__(self) -> None:
        num = len(self.alphabet) + 1
        if len(self.table) != num or any(len(row) != num or abs(sum(row) - 1) > 1e-9 for row in self.table):
            raise BadField(f"toy table: must be {num} rows of {num} probabilities that sum to 1")

    @property
    def key(self) -> int:
        return hash_seed(self.alphabet, self.table)

    def encode(self, text: str) -> list[int | None]:
        return [self.alphabet.index(c) if c in self.alphabet else None for c in text]

    @cached_property
    def log_table(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(math.log(p) if p > 0 else DEAD for p in row) for row in self.table)

    def row(self, last: int | None) -> tuple[float, ...]:
        return self.log_table[0 if last is None else last + 1]

    def log_p(self, prefix: Prefix) -> tuple[float, ...]:
        """Before the first token, the prompt's last character decides."""
        return self.row(prefix.tokens[-1] if prefix.tokens else (self.encode(rendered(prefix.prompt)) or [None])[-1])


def toy_lm(alphabet: str = "ab", seed: int = 0) -> ToyLM:
    """A model with random positive probabilities; ends with probability about 1 / (V + 1)."""
    draw = random.Random(seed)
    rows = [[draw.uniform(0.2, 1.0) for _ in range(len(alphabet) + 1)] for _ in range(len(alphabet) + 1)]
    return ToyLM(alphabet, tuple(tuple(x / sum(row) for x in row) for row in rows))


def rendered(prompt: Prompt) -> str:
    """The prompt as the toy model reads it."""
    return "".join(text for _, text in prompt.messages) + prompt.prefill


def normalized(log_w: list[float]) -> list[float]:
    top = max(log_w)
    total = top + math.log(sum(math.exp(x - top) for x in log_w))
    return [x - total for x in log_w]


def penalised(logits: tuple[float, ...], sampling: Sampling, seen: tuple[int, ...]) -> tuple[float, ...]:
    """Logits [V + 1] after the penalties for tokens `seen` so far and the biases. The slow, obvious reference."""
    moved = list(logits)
    for v in set(seen):
        moved[v] = moved[v] / sampling.repetition_penalty if moved[v] > 0 else moved[v] * sampling.repetition_penalty
        moved[v] -= sampling.frequency_penalty * seen.count(v) + sampling.presence_penalty
    for v, bias in sampling.logit_bias:
        moved[v] += bias
    return tuple(moved)


@lru_cache(maxsize=1000)
def transformed(log_p: tuple[float, ...], sampling: Sampling) -> tuple[float, ...]:
    """Log-probabilities after temperature, top_k, top_p and min_p, in this order. The slow, obvious reference."""
    best_first = sorted(range(len(log_p)), key=lambda v: (-log_p[v], v))
    if sampling.temperature == 0:
        return tuple(0.0 if v == best_first[0] else DEAD for v in range(len(log_p)))
    log_q = normalized([x / sampling.temperature for x in log_p])
    kept = best_first[: sampling.top_k]
    log_q = normalized([x if v in kept else DEAD for v, x in enumerate(log_q)])
    mass_before = [0.0, *itertools.accumulate(math.exp(log_q[v]) for v in best_first)]
    kept = [v for v, mass in zip(best_first, mass_before) if mass < sampling.top_p]
    log_q = normalized([x if v in kept else DEAD for v, x in enumerate(log_q)])
    return tuple(normalized([x if math.exp(x - max(log_q)) >= sampling.min_p else DEAD for x in log_q]))


def self_certainty(log_p: tuple[float, ...]) -> float:
    """KL(uniform || model) in nats, finite: an impossible token counts as float32's smallest probability."""
    return -sum(max(x, FLOOR) for x in log_p) / len(log_p) - math.log(len(log_p))


def probe_of(ask: Extend, position: int) -> torch.Tensor:
    """The noise [1] of the ask's draw at a position."""
    return torch.tensor([drifted(lambda seed: hash_seed("toy", seed, position) / 2**63, ask.seed, ask.drift)], dtype=torch.float64)


class StepProcess(ABC):
    """What a toy Process is without its model: tickets, one token per step of every running ask, prefixes that are reused, costs."""

    def __init__(self, model_id: str, context_len: int) -> None:
        self.model_id, self.context_len = model_id, context_len
        self.jobs: dict[int, Job | Group] = {}
        self.num_added = 0
        self.total = Cost()  # everything computed, whoever asked
        self.computed: set[tuple[str, tuple[int, ...]]] = set()  # (text read, completion read)

    @abstractmethod
    def _check(self, ask: Extend | Expand | Score | Read) -> None:
        """Raises BadField for an ask that the model cannot answer."""

    @abstractmethod
    def _drawn(self, job: Job, ask: Extend) -> Prefix:
        """The job's prefix with one more token, drawn."""

    @abstractmethod
    def _told(self, job: Job, ask: Expand | Score | Read) -> Answer:
        """The answer to an ask that draws nothing."""

    def prompt_len(self, prompt: Prompt) -> int:
        return 1 + len(rendered(prompt))

    def flops(self, num_tokens: int, context_len: int) -> float:
        return float(num_tokens * (100 + context_len))

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        if isinstance(ask, Judge):
            raise BadField("a process answers Extend, Expand, Score and Read; a Judge ask goes to its verifier")
        if isinstance(ask, Confer):
            share = None if max_tokens is None else max_tokens // len(ask.asks)
            members = [self._job(part, share) for part in ask.asks]
            self.num_added += 1
            for job in members:
                job.group, job.cost = self.num_added, Cost()
            writers = [Writer(0, ask.separator.encode()) for _ in members]
            for job, writer in zip(members, writers):
                for token in job.prefix.tokens:
                    writer.push(self._piece(token))
            self.jobs[self.num_added] = Group(ask, members, writers)
            return self.num_added
        job = self._job(ask, max_tokens)
        self.num_added += 1
        self.jobs[self.num_added] = job
        return self.num_added

    def _job(self, ask: Extend | Expand | Score | Read, max_tokens: int | None) -> Job:
        if ask.prefix.is_final and not isinstance(ask, Read):
            raise BadField(f"prefix is final ({ask.prefix.finish}): it cannot be extended, expanded or scored")
        self._check(ask)
        room = self.context_len - self.prompt_len(ask.prefix.prompt)
        if room < 1:
            raise PromptTooLong(f"prompt of {self.prompt_len(ask.prefix.prompt)} tokens: the context holds {self.context_len}; shorten the prompt")
        left = min(ask.prefix.prompt.max_tokens, room) - len(ask.prefix.tokens)
        own = min(left, ask.max_tokens or left) if isinstance(ask, Extend) else 0
        is_capped = max_tokens is not None and max_tokens < own
        return Job(ask, ask.prefix, max_tokens if is_capped and max_tokens is not None else own, is_capped)

    def step(self) -> list[tuple[int, Answer]]:
        answers = [(ticket, answer) for ticket, job in self.jobs.items() if (answer := self._advance(job)) is not None]
        for ticket, _ in answers:
            del self.jobs[ticket]
        return answers

    def progress(self) -> dict[int, Progress]:
        return {t: Progress(j.cost.prompt_tokens, j.cost.generated_tokens, j.row_tokens) for t, j in self.jobs.items()}

    def partial(self, ticket: int) -> Extension | None:
        job = self.jobs[ticket]
        if isinstance(job, Group) or not isinstance(job.ask, Extend):
            return None
        text = job.prefix.text
        size = max((n for s in job.ask.prefix.prompt.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return Extension(replace(job.prefix, text=text[: len(text) - size]), "limit", job.cost, tuple(job.logprobs))

    def cancel(self, ticket: int) -> Answer:
        job = self.jobs.pop(ticket)
        self.total += Cost(calls=1)
        if isinstance(job, Group):
            return job.answer("budget")
        if isinstance(job.ask, Extend):
            return Extension(replace(job.prefix, finish="budget"), "budget", job.cost, tuple(job.logprobs))
        if isinstance(job.ask, Read):
            return Readings((), job.cost)
        return Expansion((), job.cost) if isinstance(job.ask, Expand) else Scores((), job.cost)

    def _advance(self, job: Job | Group) -> Answer | None:
        if isinstance(job, Group):
            return self._confer(job)
        if isinstance(job.ask, Extend):
            return self._extend(job, job.ask)
        self.total += Cost(calls=1)
        assert not isinstance(job.ask, Judge | Confer)
        return self._told(job, job.ask)

    def _confer(self, group: Group) -> Extensions | None:
        due = group.due()
        for i in due:
            group.members[i].heard = group.heard(i)
        for i in due:
            job, writer = group.members[i], group.writers[i]
            told = self._extend(job, group.ask.asks[i])
            for token in job.prefix.tokens[writer.num :]:
                writer.push(self._piece(token))
            if told is not None:
                writer.end()
                group.told[i] = told
        if not group.is_done:
            return None
        self.total += Cost(calls=1)
        return group.answer("limit")

    def _piece(self, token: int) -> bytes:
        """What a token stands for, where it may end a step."""
        return b""

    def _read(self, job: Job, tokens: tuple[int, ...], num_drawn: int = 0, first: int | None = None) -> None:
        """One forward pass of `job` over its prompt and `tokens`, all but the last of which (all before place `first`) may be reused; then draws."""
        prompt = rendered(job.prefix.prompt)
        read = prompt if job.group is None else f"{prompt}\0{job.group}"  # what others write beside it changes what its tokens are computed from
        contexts = [(prompt[:i], ()) for i in range(len(prompt) + 1)] + [(read, tokens[:i]) for i in range(1, len(tokens) + 1)]
        most = len(contexts) - 1 - (0 if first is None else len(tokens) - first)
        reused = next((i for i, c in enumerate(contexts[:most]) if c not in self.computed), most)
        self.computed.update(contexts)
        job.row_tokens = len(contexts) - reused
        flops = self.flops(job.row_tokens, len(contexts))
        paid = (job.row_tokens, reused) if job.num_new == 0 else (0, 0)
        self._pay(job, Cost(prompt_tokens=paid[0], reused_tokens=paid[1], generated_tokens=num_drawn, flops=flops))

    def _pay(self, job: Job, cost: Cost) -> None:
        job.cost += cost
        self.total += cost

    def _extend(self, job: Job, ask: Extend) -> Extension | None:
        if job.limit == 0:
            return self._finished(job, "budget")
        self._read(job, job.prefix.tokens, num_drawn=1)
        job.prefix = self._drawn(job, ask)
        job.num_new += 1
        if job.prefix.is_final:
            return self._finished(job, job.prefix.finish or "")
        if any(s in job.prefix.text[len(ask.prefix.text) :] for s in ask.until):
            return self._finished(job, "until")
        if job.num_new < job.limit:
            return None
        is_full = self.prompt_len(ask.prefix.prompt) + len(job.prefix.tokens) >= self.context_len
        return self._finished(job, "budget" if job.is_capped else "length" if is_full else "limit")

    def _finished(self, job: Job, finish: str) -> Extension:
        if job.group is None:
            self.total += Cost(calls=1)
        prefix = job.prefix if finish in ("until", "limit") else replace(job.prefix, finish=finish)
        return Extension(prefix, finish, job.cost, tuple(job.logprobs))


class ToyProcess(StepProcess):
    """Role Process over a small model. One step is one token of every running ask; prefixes once computed are reused.

    Without `rng` a draw is a pure function of (seed, position, distribution), as the role demands. With `rng` each
    such triple is drawn once from it and remembered: under an EnumeratingRng the model's randomness is enumerated too,
    and asks that share a seed share their draws, as they would on a real model.
    """

    def __init__(self, lm: SmallLM, rng: Rng | None = None, context_len: int = 4096) -> None:
        super().__init__(f"toy-{lm.key:016x}", context_len)
        self.lm, self.rng = lm, rng
        self.drawn: dict[tuple[object, ...], int] = {}

    def _check(self, ask: Extend | Expand | Score | Read) -> None:
        """Raises BadField for a bias of no token, a probe of another model, and a form that no answer fulfils or that the prefix has left."""
        probes = ask.probes if isinstance(ask, Extend) else (ask.probe,) if isinstance(ask, Read) else ()
        strange = [probe for probe in probes if probe.model_id not in (None, checkpoint_of(self.model_id))]
        if strange:
            raise BadField(f"probe {strange[0].name!r} knows the states of model {strange[0].model_id}, this is {self.model_id}; train one on it")
        if self.rng is not None and isinstance(ask, Extend) and ask.drift:
            raise BadField("drift couples draws, which a process that takes its draws from an rng cannot follow; leave the rng out")
        foreign = [v for v, _ in ask.sampling.logit_bias if v > self.lm.end] if isinstance(ask, Extend) else []
        if foreign:
            raise BadField(f"logit_bias names token {foreign[0]}: this model's are 0 to {self.lm.end}; bias one of those")
        if not isinstance(ask, Score | Read) and not self.lm.allowed(ask.prefix):
            raise BadField(f"form {ask.prefix.prompt.form}: no option that the alphabet can spell begins with the prefix {ask.prefix.tokens}")

    def _piece(self, token: int) -> bytes:
        return b"" if token == self.lm.end else self.lm.alphabet[token].encode()

    def _drawn(self, job: Job, ask: Extend) -> Prefix:
        lm = self.lm.beside(job.heard)
        log_p = lm.log_p(job.prefix)
        log_q = lm.proposal(job.prefix, ask.sampling)
        at = len(job.prefix.tokens)
        token = ask.forced[at] if at < len(ask.forced) else self._draw(ask, at, log_q)
        if ask.logprobs is not None:
            top = sorted(enumerate(log_p), key=lambda pair: (-pair[1], pair[0]))[: ask.logprobs]
            job.logprobs.append(TokenLogP(token, log_p[token], tuple(top)))
        seen = tuple((probe.name, (*dict(job.prefix.readings).get(probe.name, ()), self._seen(job.prefix, probe)[0])) for probe in ask.probes)
        grown = replace(lm.grown(job.prefix, token, log_q[token]), readings=seen)
        return replace(grown, certainty=grown.certainty + self_certainty(log_p)) if ask.certainty else grown

    def _told(self, job: Job, ask: Expand | Score | Read) -> Answer:
        if isinstance(ask, Read):
            return self._see(job, ask)
        return self._expand(job, ask) if isinstance(ask, Expand) else self._score(job, ask)

    def _draw(self, ask: Extend, position: int, log_q: tuple[float, ...]) -> int:
        key = (ask.seed, ask.drift, position, log_q)
        if key not in self.drawn:
            row = torch.tensor(log_q, dtype=torch.float64)
            self.drawn[key] = int(self.rng.categorical(row[None])[0] if self.rng else inverse_cdf(row.exp(), probe_of(ask, position))[0])
        return self.drawn[key]

    def _seen(self, prefix: Prefix, probe: Probe, places: tuple[int, ...] | None = None) -> list[Row]:
        """What `probe` says of the states at `places`; by default of the last."""
        places = (len(prefix.tokens),) if places is None else places
        return rows_of(probe.read(torch.stack([self.lm.hidden(prefix, place) for place in places])))

    def _see(self, job: Job, ask: Read) -> Readings:
        self._read(job, ask.prefix.tokens[: max(ask.places)], first=min(ask.places))
        return Readings(tuple(self._seen(ask.prefix, ask.probe, ask.places)), job.cost)

    def _expand(self, job: Job, ask: Expand) -> Expansion:
        self._read(job, ask.prefix.tokens)
        log_p = self.lm.log_p(ask.prefix)
        best_first = sorted((v for v in self.lm.allowed(ask.prefix) if log_p[v] > DEAD), key=lambda v: (-log_p[v], v))
        return Expansion(tuple(self.lm.grown(ask.prefix, v, log_p[v]) for v in best_first[: ask.num]), job.cost)

    def _score(self, job: Job, ask: Score) -> Scores:
        self._read(job, ask.prefix.tokens)
        self._pay(job, Cost(prompt_tokens=sum(map(len, ask.options)), flops=self.flops(sum(map(len, ask.options)), 1)))
        return Scores(tuple(self._log_p_of(ask.prefix, option) for option in ask.options), job.cost)

    def _log_p_of(self, prefix: Prefix, option: str) -> float:
        """-inf for an option that the alphabet cannot spell."""
        log_p = 0.0
        row = self.lm.log_p(prefix)
        for token in self.lm.encode(option):
            if token is None:
                return DEAD
            log_p += row[token]
            row = self.lm.row(token)
        return log_p
