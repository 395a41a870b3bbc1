"""Laws of a process that drops keys, and wrong implementations that each of them must fail: what is shared is copied before it is changed,
columns are summed over all chunks, and nobody goes on from before keys were dropped."""

from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch

from accelerate.test_cache_policies import DECODER, keeping, policy, read_prompt, shelved
from engine.test_process import answers, bare
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.asks import Answer, Expand, Extend, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.keeping import Policy
from ponder.engine.keep import Keeper, Shelf
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.pages import PAGE, Pool, Sequence
from ponder.engine.process import Settings

TEXT = "a shared beginning that both prompts have, word for word, and then "


def ask(text: str, max_tokens: int = 12, forced: tuple[int, ...] = ()) -> Extend:
    return Extend(prefix=Prefix(chat(text, max_tokens=40)), seed=3, sampling=Sampling(temperature=1.0), max_tokens=max_tokens, forced=forced)


def is_law_kept(chosen: Policy, steps: Seq[Seq[Extend | Expand]], **settings: int) -> bool:
    """Whether asks that come step after step are answered as each of them alone."""
    process, found = keeping(chosen, **settings), []
    for asks in steps:
        found += answers(process, asks)
    alone: list[Answer] = [answers(keeping(chosen), [one])[0] for asks in steps for one in asks]
    return [bare(a) for a in found] == [bare(a) for a in alone]


def share_a_prefix() -> bool:
    """Two prompts that begin alike, the second from what the store has of the first."""
    return is_law_kept(policy("streaming", 0.2, is_full_kept=True), [[ask(TEXT + "one thing")], [ask(TEXT + "another thing")]])


def read_in_chunks() -> bool:
    return is_law_kept(policy("h2o", 0.3), [[ask(TEXT * 2)]], chunk=16)


def go_on_from_before() -> bool:
    """An answer that dropped keys at tokens 3 and 6, and then an ask for what follows its second token, whose keys were all there."""
    chosen = policy("tova", 0.3, trigger="every")
    first = ask(TEXT, 24, forced=tuple(range(65, 89)))
    (grown,) = answers(keeping(chosen), [ask(TEXT, 6, forced=tuple(range(65, 71)))])
    return is_law_kept(chosen, [[first], [Expand(prefix=grown.prefix, num=3)]])  # type: ignore[union-attr]


def test_laws():
    assert share_a_prefix()
    assert read_in_chunks()
    assert go_on_from_before()


def test_keys_that_others_read_are_copied_first(monkeypatch: pytest.MonkeyPatch):
    def in_place(self: Sequence, layer: int, head: int, places: np.ndarray) -> bool:
        pool, at = self.pool, np.arange(len(places))
        pages = self.table[layer, head].astype(np.int64)
        source, target = (pool.on_device(pages[x // PAGE] * PAGE + x % PAGE) for x in (places, at))
        for table in (pool.keys, pool.values, pool.positions):
            flat = table.view(len(table) * PAGE, -1)
            flat.index_copy_(0, target, flat.index_select(0, source))
        self.dropped[layer, head] += self.num_held(layer, head) - len(places)
        self.is_ragged = True
        return True

    monkeypatch.setattr(Sequence, "keep", in_place)
    assert not share_a_prefix()


def test_columns_of_the_last_chunk_alone_are_caught(monkeypatch: pytest.MonkeyPatch):
    right = Keeper._sum_columns

    def forgetful(self: Keeper, record, layer: int, *rest) -> None:
        if len(record.columns) > layer:
            record.columns[layer] = record.columns[layer] * 0
        right(self, record, layer, *rest)

    monkeypatch.setattr(Keeper, "_sum_columns", forgetful)
    assert not read_in_chunks()


def test_going_on_from_before_keys_were_dropped_is_caught(monkeypatch: pytest.MonkeyPatch):
    right = Shelf.put

    def careless(self: Shelf, prompt, after, *, pages, record, hidden=None):
        found = right(self, prompt, after, pages=pages, record=record, hidden=hidden)
        found.record.last = 0
        return found

    monkeypatch.setattr(Shelf, "put", careless)
    assert not go_on_from_before()


def test_what_a_shared_prefix_saves_and_what_a_policy_may_reuse():
    """A policy that sees the last rows reads them again; one that sees nothing reads one token; one that sees all rows reads all."""
    for name, num_read in (("streaming", 1), ("snapkv", 4), ("h2o", None)):
        process = keeping(policy(name, 0.5, is_full_kept=True))
        read_prompt(process, TEXT + "one thing")
        before = process.count.prompt_tokens
        process.shelf.drop_one()
        read_prompt(process, TEXT + "one thing")
        assert process.count.prompt_tokens - before == (num_read or before)


def test_siblings_share_what_was_kept():
    process = keeping(policy("snapkv", 0.5))
    read_prompt(process, TEXT)
    used, prompt = process.pool.num_used, process.count.prompt_tokens
    answers(process, [ask(TEXT, 1) for _ in range(5)])
    assert process.count.prompt_tokens == prompt, "read again"
    assert process.pool.num_used == used
    assert process.count.reused_tokens >= 5 * (prompt - 1)


def test_a_crowd_that_does_not_fit_is_put_back_and_ends():
    process = keeping(policy("h2o", 0.5), kv_bytes=90_000)
    asks = [ask("z" * (40 + 10 * i), 20) for i in range(8)]
    found = answers(process, asks)
    assert process.num_preempted > 0
    assert [bare(a) for a in found] == [bare(answers(keeping(policy("h2o", 0.5)), [one])[0]) for one in asks]


def test_guesses_change_no_answer():
    """A policy that drops keys after the prompt, with and without a drafter that is often right: the same bits."""
    asks = [Extend(prefix=Prefix(chat("abcabcabc " * 8 + "x" * n, max_tokens=40)), seed=n, sampling=Sampling(temperature=0.0)) for n in (1, 5, 9)]
    guessing = Speculation(drafter=Ngram(), acceptor=Coupled(), control=Fixed(num=4))
    for name in ("snapkv", "adakv", "knorm"):
        found = []
        for speculation in (None, guessing):
            settings = Settings(cache=policy(name, 0.4), speculation=speculation)
            found.append([bare(a) for a in answers(KeepingProcess(DECODER, ByteTokenizer(), Sarathi(), settings), asks)])
        assert found[0] == found[1]


def test_memory_goes_back_to_the_system():
    process = keeping(policy("streaming", 0.1), kv_bytes=1 << 22)
    read_prompt(process, "w " * 200)
    assert process.nbytes == process.pool.num_used * process.pool.page_nbytes or process.pool.trim(at_least=1) > 0
    assert process.nbytes == int(shelved(process).num_pages.sum()) * process.pool.page_nbytes


def test_a_pool_counts_what_is_dropped():
    pool = Pool((1, 1, 16), torch.bfloat16, 1 << 16)
    sequence = Sequence(pool)
    assert sequence.reserve(160)
    sequence.num_tokens = 160
    fork = sequence.fork()
    assert fork.keep(0, 0, np.arange(0, 160, 4))
    assert (fork.num_held(0, 0), sequence.num_held(0, 0)) == (40, 160)
    assert pool.num_used == 10 + 3
    sequence.release()
    assert pool.num_used == 3
    assert fork.keep(0, 0, np.arange(10))
    assert pool.num_used == 1
