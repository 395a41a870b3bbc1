"""Many long sequences at once in a process, without computing them: pages of random keys that pretend to be prefixes in its store.

Sequences share physical pages in different order where they would not fit otherwise, so that a pool of bounded size stands for any
number of keys; it is far larger than the caches. What the model then says is nonsense, and takes exactly as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ponder.core.asks import Extend, Prefix, Prompt, Sampling
from ponder.core.errors import BadField
from ponder.core.formats import Tokenizer
from ponder.engine.pages import PAGE
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import LocalProcess, Settings

RUN = 32  # pages of a head that lie side by side, as a chunk of a prompt lays them
PLANTED_BYTES = 1 << 30
MAX_ROWS = 256  # sequences at once
GROWN = 16384  # tokens that may be added to what is planted


@dataclass
class Endless:
    """A tokenizer without an end: no answer stops before its time."""

    inner: Tokenizer
    vocab_size: int
    pieces: tuple[bytes, ...]
    eos_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return self.inner.encode(text, parse_special=parse_special)

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids)

    def render(self, messages: tuple[tuple[str, str], ...], prefill: str = "") -> list[int]:
        return self.inner.render(messages, prefill)


def plantable(process: LocalProcess, planted_bytes: int = PLANTED_BYTES) -> LocalProcess:
    """A process of the same model to plant in, with random keys in planted_bytes of its pages."""
    config = process.decoder.config
    grown = GROWN // PAGE * config.num_layers * config.num_kv_heads * process.pool.page_nbytes
    settings = Settings(kv_bytes=planted_bytes + grown, max_rows=MAX_ROWS, chunk=process.chunk, kv_format=process.pool.kv_format)
    tokenizer = process.tokenizer
    endless = Endless(tokenizer, tokenizer.vocab_size, tokenizer.pieces)
    made = LocalProcess(process.decoder, endless, process.scheduler, settings)
    num = num_planted(made)
    made.pool.take(num)
    rng = np.random.default_rng(0)
    some = torch.from_numpy(rng.standard_normal((1 << 12, made.pool.width)).astype(np.float32))
    for table in (made.pool.keys, made.pool.values):
        rows = (some * 16).to(table.dtype) if made.pool.scales is not None else some.to(table.dtype)
        for start in range(0, num * PAGE, len(rows)):
            stop = min(start + len(rows), num * PAGE)
            table.view(-1, made.pool.width)[start:stop] = rows[: stop - start]
    for scales in made.pool.scales or ():
        scales[:num] = 1 / 16
    made.pool.positions[:num] = 0
    return made


def num_planted(process: LocalProcess) -> int:
    """Pages of random keys of a process that `plantable` made; they are its first."""
    return process.pool.num_pages - GROWN // PAGE * process.pool.heads


def max_planted(process: LocalProcess) -> int:
    """Tokens of the longest sequence that can be planted."""
    return num_planted(process) // RUN // process.pool.heads * RUN * PAGE


def planted_pages(process: LocalProcess, index: int, num_tokens: int) -> Pages:
    """Sequence number `index` of num_tokens tokens. Raises BadField where it is longer than all that is planted."""
    pool = process.pool
    num = -(-num_tokens // PAGE)
    num_runs, needed = num_planted(process) // RUN, pool.heads * -(-num // RUN)
    if needed > num_runs:
        raise BadField(f"context={num_tokens}: at most {max_planted(process)} tokens of keys can be planted; take a shorter one")
    rng = np.random.default_rng([index, num_tokens])
    runs = rng.permutation(num_runs)[:needed].astype(np.int32) * RUN
    table = (runs[:, None] + np.arange(RUN, dtype=np.int32)).reshape(pool.num_layers, pool.num_kv_heads, -1)[:, :, :num]
    return Pages(pool, np.ascontiguousarray(table), num_tokens)


def planted_asks(process: LocalProcess, batch: int, context: int, *, max_tokens: int, sampling: Sampling) -> list[Extend]:
    """Asks that go on from `batch` planted prompts of `context` tokens each."""
    asks = []
    for index in range(batch):
        prompt, ids = new_prompt(process, index, context, max_tokens)
        pages = planted_pages(process, index, context)
        process.store.put(
            tuple(ids), pages, torch.randn(process.decoder.config.dim, generator=torch.Generator().manual_seed(index)).to(process.pool.dtype)
        )
        pages.release()
        asks.append(Extend(prefix=Prefix(prompt), seed=index, sampling=sampling))
    return asks


def fresh_asks(process: LocalProcess, batch: int, context: int, round_number: int) -> list[Extend]:
    """Asks for one token after `batch` prompts of `context` tokens that nobody has computed."""
    prompts = [new_prompt(process, index + batch * round_number, context, 1)[0] for index in range(batch)]
    return [Extend(prefix=Prefix(prompt), seed=0, sampling=Sampling()) for prompt in prompts]


def new_prompt(process: LocalProcess, index: int, context: int, max_tokens: int) -> tuple[Prompt, list[int]]:
    """A prompt that is `context` random tokens to this process, the first of which nobody else begins with."""
    if context + max_tokens > process.context_len or index >= process.decoder.config.vocab_size:
        raise BadField(f"context={context}: the model's own is {process.context_len}, of which {max_tokens} are for the answer; take a shorter one")
    prompt = Prompt(messages=(("raw", f"planted {index} {context}"),), max_tokens=max_tokens)
    ids = np.random.default_rng([index, context]).integers(0, process.decoder.config.vocab_size, context).tolist()
    ids[0] = index
    process.rendered[prompt.messages, prompt.prefill] = ids
    return prompt, ids


def running(process: LocalProcess, asks: Sequence[Extend]) -> list[int]:
    """Adds asks and takes the steps until all of them generate; their tickets."""
    tickets = [process.add(ask) for ask in asks]
    process.step()
    return tickets


def clear(process: LocalProcess) -> None:
    """Ends all that runs and forgets every prefix."""
    for ticket in list(process.jobs):
        process.cancel(ticket)
    process.drop_cache()
    process.rendered.clear()
