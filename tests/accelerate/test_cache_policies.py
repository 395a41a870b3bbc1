"""Every cache policy on a tiny model: nothing dropped is plain decoding bit for bit; budgets are kept exactly; an answer is the same
alone and in a crowd; keys that stay are the ones that were there, at their positions; and wrong implementations fail."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.test_process import answers, bare, mixed_asks
from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import CACHES, WEIGHTS, attention_plan, cache_policy
from ponder.cli.many import Opening
from ponder.connect.elsewhere import check_settings
from ponder.core.accelerations import Accelerations
from ponder.core.asks import Expansion, Extend, Extension, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField, UnknownName
from ponder.core.keeping import Policy
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.open import open_process
from ponder.engine.pages import INT8, PLAIN, KVFormat
from ponder.engine.process import LocalProcess, Settings
from ponder.testing.laws_process import LAWS

DECODER = tiny_decoder("qwen2")
SMALL = 150_000  # bytes of keys and values: too few for a crowd
SPECS = {  # each policy with a window that is small beside these prompts
    name: name + (":window=4" if "window" in {f.name for f in dataclasses.fields(policy.scorer)} else "")
    for name, policy in CACHES.items()  # type: ignore[arg-type]
}


def policy(name: str, keep: float, *, is_full_kept: bool = False, trigger: str | None = None) -> Policy:
    spec = SPECS[name] + ("," if ":" in SPECS[name] else ":") + f"keep={keep},is_full_kept={is_full_kept}"
    return cache_policy(spec + (f",trigger={trigger}" if trigger else ""))


def keeping(
    chosen: Policy, *, max_rows: int = 64, kv_bytes: int = 1 << 24, chunk: int = 512, is_native: bool = True, kv_format: KVFormat = PLAIN
) -> KeepingProcess:
    settings = Settings(max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk, is_native=is_native, cache=chosen, kv_format=kv_format)
    return KeepingProcess(DECODER, ByteTokenizer(), Sarathi(), settings)


@pytest.mark.parametrize("name", CACHES)
def test_laws_of_a_process(name: str):
    for law in LAWS:
        law(lambda: keeping(policy(name, 0.4)), chat("Say something.", max_tokens=24), 0.0)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("trigger", ["after_prompt", "every"])
def test_keeping_all_is_plain_decoding(name: str, trigger: str):
    prompts = [chat("some words " * n, max_tokens=20) for n in (1, 9, 20)]
    asks = mixed_asks(3, [Prefix(p) for p in prompts])
    process = keeping(policy(name, 1.0 if trigger == "after_prompt" else 4096, trigger=trigger))
    plain = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    assert [bare(a) for a in answers(process, asks)] == [bare(a) for a in answers(plain, asks)]
    assert process.keeper.kept.num_times == 0


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("max_rows", "kv_bytes", "chunk", "is_full_kept"), [(3, 1 << 24, 33, True), (64, SMALL, 512, False), (5, SMALL, 7, True)])
def test_an_answer_is_the_same_whatever_runs_beside_it(name: str, max_rows: int, kv_bytes: int, chunk: int, is_full_kept: bool):
    """Bit for bit: alone in a fresh process, or in a crowd, preempted, in other chunks, from a shared prefix."""
    chosen = policy(name, 0.4, is_full_kept=is_full_kept, trigger="every" if name in ("snapkv", "adakv") else None)
    prompts = [chat("y" * 70 + "x" * n, max_tokens=24) for n in (1, 60, 60)]
    crowd = keeping(chosen, max_rows=max_rows, kv_bytes=kv_bytes, chunk=chunk)
    prefixes = [Prefix(p) for p in prompts]
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)[::2]
        found = answers(crowd, asks)
        alone = [answers(keeping(chosen), [ask])[0] for ask in asks]
        assert [bare(a) for a in found] == [bare(a) for a in alone]
        grown = [a.prefix for a in found if isinstance(a, Extension)] + [c for a in found if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::3]
    assert crowd.nbytes <= kv_bytes
    assert crowd.keeper.kept.num_times > 0
    assert not crowd.records
    crowd.drop_cache()
    assert crowd.pool.num_used == 0, "pages leak"


def read_prompt(process: KeepingProcess, text: str, max_tokens: int = 1) -> None:
    ask = Extend(prefix=Prefix(chat(text, max_tokens=max_tokens)), seed=0, sampling=Sampling(temperature=1.0), max_tokens=max_tokens)
    answers(process, [ask])


def shelved(process: KeepingProcess):
    (entries,) = process.shelf.prompts.values()
    return entries[()].pages


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("keep", [0.25, 0.5, 40])
def test_budgets_are_kept_exactly_and_bytes_are_given_back(name: str, keep: float):
    process = keeping(policy(name, keep))
    read_prompt(process, "a b c d e f " * 20)
    pages = shelved(process)
    num_prompt = pages.num_tokens
    budget = int(keep * num_prompt) if keep <= 1 else int(keep)
    held = num_prompt - pages.dropped
    assert held.sum() == budget * held.size
    if name not in ("pyramidkv", "adakv", "d2o"):
        assert (held == budget).all()
    if name == "adakv":
        assert (held.sum(1) == budget * held.shape[1]).all()
        assert len(set(held.flatten().tolist())) > 1
    if name == "d2o":
        assert (held == held[:, :1]).all()
        assert len(set(held[:, 0].tolist())) > 1
    if name == "pyramidkv":
        assert (np.diff(held[:, 0]) <= 0).all()
        assert held[0, 0] > held[-1, 0]
    assert (pages.num_pages == -(-held // 16)).all()
    assert process.pool.num_used == pages.num_pages.sum(), "what was dropped takes pages"
    kept = process.keeper.kept
    assert (kept.per_head.numpy() == held).all()
    assert kept.keys_kept == held.sum()
    assert str(kept).startswith(f"kept {100 * held.sum() / (held.size * num_prompt):.0f} % of keys")
    assert kept.bytes_kept == pages.num_pages.sum() * process.pool.page_nbytes


MERGING = {name for name, chosen in CACHES.items() if type(chosen.evictor) is not Drop}


@pytest.mark.parametrize("name", sorted(CACHES.keys() - MERGING))
def test_keys_that_stay_are_unchanged_at_their_positions(name: str):
    """Bit for bit the keys of plain decoding, with the rotary phase that they had."""
    text = "the quick brown fox " * 9
    process, plain = keeping(policy(name, 0.3)), LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    read_prompt(process, text)
    answers(plain, [Extend(prefix=Prefix(chat(text, max_tokens=1)), seed=0, sampling=Sampling(temperature=1.0), max_tokens=1)])
    num = shelved(process).num_tokens
    whole = plain.store.pages(plain.store.find(tuple(ByteTokenizer().render((("user", text),)))))
    for layer in range(3):
        keys, values = plain.pool.read(torch.from_numpy(whole[layer].astype(np.int64)))
        positions, read = process.keeper._slots(shelved(process), layer, num)
        mine, my_values = read()
        for head in range(2):
            at = positions[head][positions[head] >= 0]
            assert (at.diff() > 0).all()
            assert torch.equal(mine[head, : len(at)], keys[head, at])
            assert torch.equal(my_values[head, : len(at)], values[head, at])


@pytest.mark.parametrize("name", [name for name, chosen in CACHES.items() if type(chosen.trigger).__name__ == "OverBudget"])
def test_long_answers_stay_within_the_budget(name: str):
    process = keeping(policy(name, 24))
    held: list[int] = []
    process.add(Extend(prefix=Prefix(chat("word " * 12, max_tokens=90)), seed=1, sampling=Sampling(temperature=1.0), forced=(65,) * 80))
    while process.jobs:
        process.step()
        held += [p.num_tokens - int(p.dropped.max()) for p, r in ((t.pages, r) for t, r in process.records.items()) if r.last]
    assert max(held) <= 24 + 16 + 12 * (name == "d2o")  # the fullest head of a layer that keeps more
    assert min(held) == 24 or name == "d2o"
    assert len(held) > 70


def test_policies_by_name():
    chosen = cache_policy("snapkv:0.25")
    assert (chosen.keep, chosen.scorer.window) == (0.25, 32)  # type: ignore[attr-defined]
    assert cache_policy("snapkv:0.25,allocator=adakv,window=8").label != chosen.label
    assert cache_policy("h2o:512").budget(10_000) == 512
    for spec, error, message in (
        ("snapvk:0.5", UnknownName, "did you mean snapkv"), ("snapkv:0", BadField, "keep=0"), ("snapkv:1.5", BadField, "whole number"),
        ("snapkv:0.5,windw=3", UnknownName, "window"), ("snapkv:kernel=4", BadField, "kernel odd"), ("h2o:recent=2", BadField, r"recent must be"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            cache_policy(spec)


@pytest.mark.parametrize("name", ["snapkv", "h2o", "streaming", "d2o", "elastic"])
@pytest.mark.parametrize("how", [{"is_native": False}, {"kv_format": INT8}], ids=["torch", "int8"])
def test_without_the_compiled_kernel_and_with_keys_of_eight_bits(name: str, how: dict):
    chosen, asks = policy(name, 0.4), mixed_asks(1, [Prefix(chat("y" * 50 + "x" * n, max_tokens=24)) for n in (1, 60)])
    crowd = keeping(chosen, chunk=9, **how)
    alone = [answers(keeping(chosen, **how), [ask])[0] for ask in asks]
    assert [bare(a) for a in answers(crowd, asks)] == [bare(a) for a in alone]
    assert crowd.keeper.kept.num_times > 0


def test_refused_where_it_cannot_be(tmp_path: Path):
    speculation = Speculation(drafter=Ngram(), acceptor=Coupled(), control=Fixed(num=4))
    for settings in (
        Settings(cache=cache_policy("snapkv"), attend=attention_plan("s2")),
        Settings(speculation=speculation, attend=attention_plan("quest")),
    ):
        with pytest.raises(BadField, match="leave one out"):
            open_process(tmp_path, weights=WEIGHTS["bf16"], scheduler=Sarathi(), settings=settings)
    with pytest.raises(BadField, match="cache=snapkv"):
        check_settings(
            "http://127.0.0.1:1/v1#m", weights=None, device="cpu", threads=None, context=None, accelerations=Accelerations(cache="snapkv:0.5")
        )
    with pytest.raises(UnknownName, match="did you mean snapkv"):
        Opening(model="smollm2-135m", weights=None, threads=None, device="cpu", accelerations=Accelerations(cache="snapk:0.5"))
