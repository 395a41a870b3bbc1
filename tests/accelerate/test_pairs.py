"""Cache policies, attention plans and drafts two by two: what one of them gives alone is what it gives beside the other, bit for bit."""

from dataclasses import replace

import pytest

from accelerate.test_cache_policies import DECODER, policy
from engine.test_process import answers, bare, mixed_asks
from engine.test_rounds import Guesser, book_of
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.attend.vertical_slash import VerticalSlash
from ponder.accelerate.cache.quantise import Quantise
from ponder.accelerate.cache.spill import Spill
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import CACHES
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.keeping import Policy
from ponder.engine.keep import Record
from ponder.engine.open import process_for
from ponder.engine.process import LocalProcess, Settings
from ponder.native.build import library

SPARSE = VerticalSlash(mass=0.5, window=16, segment=128, dense_below=64)
needs_kernel = pytest.mark.skipif(library() is None, reason="no compiled kernel here")


def opened(settings: Settings) -> LocalProcess:
    return process_for(settings)(DECODER, ByteTokenizer(), Sarathi(), settings)


def asks_of(num_new: int = 30) -> list[Extend]:
    lengths = (10, 40, 90, 90)
    return [
        Extend(prefix=Prefix(chat("y" * 30 + "x" * n, max_tokens=num_new)), seed=i, sampling=Sampling(temperature=[1.0, 0.0][i % 2]), certainty=True)
        for i, n in enumerate(lengths)
    ]


def guessing(settings: Settings, asks, num_paths: int) -> Settings:
    """The same settings with a drafter that is often right."""
    book = book_of(asks, answers(opened(settings), asks))
    return replace(settings, speculation=Speculation(drafter=Guesser(book=book, num_paths=num_paths), acceptor=Coupled(), control=Fixed(num=12)))


def check_guesses(settings: Settings, *, num_paths: int) -> None:
    asks = asks_of()
    wanted = [bare(a) for a in answers(opened(settings), asks)]
    process = opened(guessing(settings, asks, num_paths))
    assert [bare(a) for a in answers(process, asks)] == wanted
    assert process.totals.accepted_tokens > 20
    narrow = opened(replace(guessing(settings, asks, num_paths), max_rows=5, chunk=9))
    assert [bare(a) for a in answers(narrow, asks)] == wanted
    for one in (process, narrow):
        one.drop_cache()
        assert one.pool.num_used == 0, "pages leak"


@pytest.mark.parametrize("num_paths", [1, 3], ids=["chains", "trees"])
@pytest.mark.parametrize("trigger", ["after_prompt", "every"])
@pytest.mark.parametrize("name", CACHES)
def test_a_policy_sees_and_drops_what_was_committed_alone(name: str, trigger: str, num_paths: int):
    check_guesses(Settings(cache=policy(name, 0.4, trigger=trigger)), num_paths=num_paths)


@pytest.mark.parametrize("name", ["streaming", "h2o", "tova"])
def test_policies_that_drop_a_key_a_token(name: str):
    check_guesses(Settings(cache=policy(name, 24)), num_paths=3)


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_without_the_compiled_kernel(name: str):
    check_guesses(Settings(cache=policy(name, 0.4, trigger="every"), is_native=False), num_paths=3)


@pytest.mark.parametrize("evictor", [Quantise(), Spill(recall=2)])
def test_guesses_meet_what_evictors_put_elsewhere(evictor):
    check_guesses(Settings(cache=replace(policy("snapkv", 0.3, trigger="every"), evictor=evictor)), num_paths=3)


def test_short_of_memory():
    asks = asks_of()
    settings = Settings(cache=policy("h2o", 0.5, trigger="every"))
    wanted = [bare(a) for a in answers(opened(settings), asks)]
    process = opened(replace(guessing(settings, asks, 3), kv_bytes=90_000))
    assert [bare(a) for a in answers(process, asks)] == wanted
    assert process.num_preempted


# what the law must find fault with


def test_a_policy_that_is_late_is_found(monkeypatch):
    """Guesses beyond the token at which keys are dropped."""
    monkeypatch.setattr("ponder.engine.keeping_process.KeepingProcess._ahead", LocalProcess._ahead)
    with pytest.raises((AssertionError, RuntimeError)):
        check_guesses(Settings(cache=policy("h2o", 0.4, trigger="every")), num_paths=3)


def test_a_policy_that_sees_what_was_only_guessed_is_found(monkeypatch):
    """Rows of the first path, whether it was kept or not."""
    monkeypatch.setattr(Record, "blank", lambda self: self)
    monkeypatch.setattr(Record, "add_row", lambda self, guessed, place: None)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check_guesses(Settings(cache=policy("h2o", 0.4, trigger="every")), num_paths=3)


# attention plans for prompts


def check_plan(cache: Policy) -> None:
    asks = mixed_asks(1, [Prefix(chat("y" * 70 + "x" * n, max_tokens=20)) for n in (60, 190)])
    settings = Settings(attend=SPARSE, cache=cache)
    alone = [bare(answers(opened(settings), [ask])[0]) for ask in asks]
    for kind in ({"chunk": 130}, {"chunk": 128, "max_rows": 4}, {"kv_bytes": 200_000}):
        assert [bare(a) for a in answers(opened(replace(settings, **kind)), asks)] == alone, kind
    assert alone != [bare(a) for a in answers(opened(Settings(cache=cache)), asks)]


@needs_kernel
@pytest.mark.parametrize("trigger", ["after_prompt", "every"])
@pytest.mark.parametrize("name", CACHES)
def test_a_policy_over_a_prompt_that_was_read_by_a_plan(name: str, trigger: str):
    check_plan(policy(name, 0.3, trigger=trigger))


@needs_kernel
def test_a_plan_that_reads_everything_changes_no_policy():
    asks = mixed_asks(1, [Prefix(chat("y" * 70 + "x" * n, max_tokens=20)) for n in (60, 190)])
    for name in ("streaming", "knorm"):  # those that see no weights: these are summed by another kernel then
        settings = Settings(cache=policy(name, 0.3))
        wanted = [bare(a) for a in answers(opened(settings), asks)]
        assert [bare(a) for a in answers(opened(replace(settings, attend=VerticalSlash(mass=1.0))), asks)] == wanted


@needs_kernel
def test_guesses_behind_a_prompt_that_was_read_by_a_plan():
    check_guesses(Settings(attend=SPARSE), num_paths=3)
    check_guesses(Settings(attend=SPARSE, cache=policy("h2o", 0.4, trigger="every")), num_paths=3)
