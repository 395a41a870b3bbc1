"""Role Process over any causal model of transformers: for architectures that the engine does not run.

Each sequence is computed by itself, a forward pass per step, with the model's own cache of keys; draws, stops, forms and scores
are the engine's. So it is right, not fast. Of caches, those of the last prefixes are kept and copied when they are gone on from.
"""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ponder.core.asks import Answer, Ask, Expand, Extend, Extension, Judge, Prompt, Read
from ponder.core.errors import BadField, BadModelFile, PromptTooLong
from ponder.core.formats import Tokenizer
from ponder.core.needs import WORDS
from ponder.core.roles import Progress
from ponder.engine.jobs import ExpandJob, ExtendJob, Job, ScoreJob, Track, partial_answer
from ponder.engine.sampler import LogP, draw, most_likely
from ponder.models.tokenizer import folder_tokenizer

NUM_CACHES = 32  # prefixes whose keys are kept
UNLIMITED = 1 << 40


class TransformersProcess:
    """See Process. model: a causal model of transformers, in eval mode; model_id must be another one for other weights."""

    offers = frozenset(WORDS) - {"probes", "usd", "confer"}

    def __init__(self, model: Any, tokenizer: Tokenizer, *, model_id: str, context_len: int | None = None) -> None:
        self.model, self.tokenizer, self.model_id = model, tokenizer, model_id
        self.context_len = context_len or int(model.config.max_position_embeddings)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.jobs: dict[int, Job] = {}
        self.caches: OrderedDict[tuple[int, ...], Any] = OrderedDict()  # prefix -> the model's cache of exactly its keys
        self.num_added = 0

    def prompt_len(self, prompt: Prompt) -> int:
        return len(self.tokenizer.render(prompt.messages, prompt.prefill))

    def flops(self, num_tokens: int, context_len: int) -> float:
        """Two for each parameter and token; attention is left out."""
        return 2.0 * self.num_parameters * num_tokens

    def add(self, ask: Ask, max_tokens: int | None = None) -> int:
        """See core.roles. Raises BadField for a Judge, a Read or a final prefix, PromptTooLong."""
        if isinstance(ask, Judge | Read) or (isinstance(ask, Extend) and ask.probes):
            raise BadField(f"a model of transformers answers Extend, Expand and Score without probes, not {type(ask).__name__}")
        if ask.prefix.is_final:
            raise BadField(f"prefix is final ({ask.prefix.finish}): it cannot be extended, expanded or scored")
        ids = self.tokenizer.render(ask.prefix.prompt.messages, ask.prefix.prompt.prefill)
        if len(ids) + 1 > self.context_len:
            raise PromptTooLong(f"prompt of {len(ids)} tokens: the context holds {self.context_len}, answer included; shorten it")
        left = min(ask.prefix.prompt.max_tokens, self.context_len - len(ids)) - len(ask.prefix.tokens)
        self.num_added += 1
        if isinstance(ask, Extend):
            limits = ((left, "length"), (ask.max_tokens or UNLIMITED, "limit"), (UNLIMITED if max_tokens is None else max_tokens, "budget"))
            self.jobs[self.num_added] = ExtendJob(ask, ids, self.tokenizer, limits)
        elif isinstance(ask, Expand):
            self.jobs[self.num_added] = ExpandJob(ask, ids, self.tokenizer, left)
        else:
            self.jobs[self.num_added] = ScoreJob(ask, ids, self.tokenizer)
        return self.num_added

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Answer]]:
        """One token of every Extend under way; every Expand and Score whole."""
        done = []
        for ticket, job in list(self.jobs.items()):
            job.count.row_tokens = 0
            if self._is_over(job):
                del self.jobs[ticket]
                done.append((ticket, job.answer()))
        return done

    def progress(self) -> dict[int, Progress]:
        counts = {ticket: job.count for ticket, job in self.jobs.items()}
        return {ticket: Progress(c.prompt_tokens, c.generated_tokens, c.row_tokens) for ticket, c in counts.items()}

    def partial(self, ticket: int) -> Extension | None:
        """How far an Extend under way has come; None for other asks."""
        job = self.jobs.get(ticket)
        return job.so_far() if isinstance(job, ExtendJob) else None

    def cancel(self, ticket: int) -> Answer:
        return partial_answer(self.jobs.pop(ticket))

    def _is_over(self, job: Job) -> bool:
        """Advances the job by a step; whether it is answered."""
        if isinstance(job, ExtendJob):
            if job.finish is None:
                (drawn,) = draw(self._logits(job, job.tracks[0])[-1:], [job.wish()])
                job.push(drawn)
            return job.finish is not None
        if isinstance(job, ExpandJob):
            tokens, log_p = most_likely(self._logits(job, job.tracks[0])[-1:], job.ask.num)
            job.push(tokens[0], log_p[0])
            return True
        assert isinstance(job, ScoreJob)
        for track in job.tracks:
            rows = self._logits(job, track, since=track.num_given - 1)[-len(track.options) :]
            job.push(track.options, LogP(rows).of(torch.arange(len(rows)), torch.tensor(track.options)).tolist())
        return True

    def _logits(self, job: Job, track: Track, since: int | None = None) -> Tensor:
        """float32 rows of the track's last tokens, at least from place `since` on; what is not in the cache is computed."""
        key = tuple(track.key)
        own = self.caches.pop(key[:-1], None) if track.num_computed == len(key) - 1 else None
        cache, num = (own, len(key) - 1) if own is not None else self._cached(key[: len(key) - 1 if since is None else since])
        ids = torch.tensor([track.tokens(num, len(key))], device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        self._keep(key, out.past_key_values)
        num_paid = max(0, len(key) - max(num, track.num_known))  # what was generated here is no prompt token
        self._count(job, track, num_new=len(key) - num - num_paid, num_paid=num_paid, num_reused=num)
        track.num_computed = len(key)
        return out.logits[0].float()  # type: ignore[no-any-return]

    def _count(self, job: Job, track: Track, *, num_new: int, num_paid: int, num_reused: int) -> None:
        """Books a forward pass: tokens that the track brought are prompt tokens, once; those that it generated are not."""
        is_first = track.num_computed == 0
        job.count.prompt_tokens += num_new
        job.count.reused_tokens += num_reused if is_first and track is job.tracks[0] else 0
        job.count.row_tokens += num_new + num_paid
        job.count.flops += self.flops(num_new + num_paid, num_reused)

    def _cached(self, key: tuple[int, ...]) -> tuple[Any, int]:
        """(a copy of the longest kept cache whose prefix `key` begins with, cut to what they share; how many tokens that is)."""
        shared = {kept: _common(kept, key) for kept in self.caches}
        best = max(shared, key=lambda kept: shared[kept], default=None)
        if best is None or not shared[best]:
            return None, 0
        cache = copy.deepcopy(self.caches[best])
        if shared[best] < len(best):
            cache.crop(shared[best] - len(best))  # negative: so many fewer
        self.caches.move_to_end(best)
        return cache, shared[best]

    def _keep(self, key: tuple[int, ...], cache: Any) -> None:
        self.caches[key] = cache
        if len(self.caches) > NUM_CACHES:
            self.caches.popitem(last=False)


def open_transformers(folder: Path, *, dtype: torch.dtype = torch.float32) -> TransformersProcess:
    """The model of a folder as a process. Raises BadModelFile for one that transformers or our tokenizer cannot open."""
    try:
        import transformers
    except ImportError as error:
        raise BadField("a model of transformers needs the package transformers: install it") from error
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).eval()
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{folder}: transformers cannot open it ({error})") from error
    return TransformersProcess(model, folder_tokenizer(folder), model_id=f"transformers-{folder.name}/{str(dtype).removeprefix('torch.')}")


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Number of tokens with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
