"""Keys that are neither kept nor gone: in 8 or 4 bits, or in a file. Against attention over all keys, computed by itself; every law with a
wrong implementation that it must fail."""

import dataclasses
import gc
from pathlib import Path

import pytest
import torch

from accelerate.test_cache_policies import DECODER, keeping, read_prompt
from engine.test_process import answers, bare, mixed_asks
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.cache.quantise import Packed, Quantise, coded
from ponder.accelerate.cache.spill import Spill, Spilled
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import cache_policy
from ponder.core.asks import Expansion, Extension, Prefix, Score, chat
from ponder.core.errors import BadField
from ponder.core.evidence import View
from ponder.core.keeping import Policy
from ponder.core.rest import Query, evicted
from ponder.engine.process import LocalProcess, Settings
from ponder.testing.laws_process import LAWS

EVERYTHING = Spill(recall=1000)
EVICTORS = [Quantise(), Quantise(bits=4), Spill(recall=2), EVERYTHING]


def policy(evictor, keep: float = 0.3, *, trigger: str = "after_prompt") -> Policy:
    return dataclasses.replace(cache_policy(f"snapkv:keep={keep},window=4,trigger={trigger}"), evictor=evictor)


def scene(seed: int = 0) -> tuple[View, list[torch.Tensor], torch.Tensor]:
    """Two heads that hold 90 and 70 keys and keep 20 and 9 of them, and queries of two heads each."""
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 90, 16, generator=g).bfloat16() for _ in range(2))
    positions = torch.stack([torch.arange(90), torch.cat([torch.arange(0, 140, 2), torch.full((20,), -1)])])
    kept = [torch.randperm(90, generator=g)[:20].sort().values, torch.randperm(70, generator=g)[:9].sort().values]
    view = View(layer=0, num_layers=1, num_tokens=140, positions=positions, read=lambda: (keys, values))
    return view, kept, torch.randn(3, 4, 16, generator=g).bfloat16()


def reference(view: View, kept, q_NHE, *, at, window=None) -> torch.Tensor:
    """Attention to what was not kept, key by key, in float64."""
    out = torch.zeros(q_NHE.shape, dtype=torch.float64)
    for n in range(len(q_NHE)):
        for h in range(4):
            head = h // 2
            gone = [s for s in range(90) if view.positions[head, s] >= 0 and s not in kept[head].tolist()]
            gone = [s for s in gone if view.positions[head, s] <= at[n] and (window is None or view.positions[head, s] > at[n] - window)]
            scores = torch.stack([q_NHE[n, h].double() @ view.keys[head, s].double() / 4 for s in gone])
            out[n, h] = scores.softmax(0) @ view.values[head, gone].double()
    return out


@pytest.mark.parametrize("window", [None, 60])
def test_what_went_is_met(window: int | None):
    view, kept, q = scene()
    at = torch.tensor([140, 141, 142])
    for evictor, tolerance in ((EVERYTHING, 1e-5), (Quantise(), 0.02), (Quantise(bits=4), 0.25)):
        rest = evictor.rest(view, kept)
        found, lse = rest.meet(Query(q_NHE=q, at=at, window=window))
        error = (found - reference(view, kept, q, at=at, window=window)).abs().max()
        assert error < tolerance, (evictor, error)
        assert lse.isfinite().all()
        for n in range(3):  # one by one, bit for bit
            assert torch.equal(rest.meet(Query(q_NHE=q[n : n + 1], at=at[n : n + 1], window=window))[0][0], found[n])


def test_what_comes_back_are_the_blocks_that_promise_most():
    view, kept, q = scene()
    keys, values, positions = evicted(view, kept, 16)
    found, lse = Spill(recall=2).rest(view, kept).meet(Query(q_NHE=q, at=torch.tensor([140, 141, 142])))
    for n in range(3):
        for head in range(2):
            promised = []
            for block in range(positions.shape[1] // 16):
                some = keys[head, block * 16 : block * 16 + 16].float()
                each = [torch.maximum(q[n, h].float() * some.amax(0), q[n, h].float() * some.amin(0)).sum() for h in (2 * head, 2 * head + 1)]
                promised.append(float(max(each)) if positions[head, block * 16] >= 0 else -1e9)
            best = sorted(range(len(promised)), key=lambda b: -promised[b])[:2]
            slots = [s for b in sorted(best) for s in range(b * 16, b * 16 + 16) if positions[head, s] >= 0]
            for h in (2 * head, 2 * head + 1):
                scores = keys[head, slots].double() @ q[n, h].double() / 4
                assert torch.allclose(found[n, h].double(), scores.softmax(0) @ values[head, slots].double(), atol=1e-5)
                assert torch.allclose(lse[n, h].double(), scores.logsumexp(0), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_err_by_half_a_step_and_take_the_bits_they_say(bits: int):
    x = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    codes = coded(x, bits, dim=2)
    step = (x.amax(2) - x.amin(2)) / (2**bits - 1)
    assert ((codes.read() - x).abs().amax(2) <= 0.6 * step + 2e-3).all()
    assert codes.codes.nbytes == x.numel() * bits // 8
    assert codes.nbytes == codes.codes.nbytes + 2 * 2 * 2 * 3 * 16


def test_nothing_went_where_all_is_kept():
    view, _, _ = scene()
    for evictor in EVICTORS:
        assert evictor.rest(view, [torch.arange(90), torch.arange(70)]) is None


def test_a_file_is_there_as_long_as_it_is_needed():
    view, kept, _ = scene()
    rest = Spill().rest(view, kept)
    assert Path(rest.path).stat().st_size == rest.nbytes_away == 2 * 5 * 2 * 16 * 16 * 2
    path = rest.path
    del rest
    gc.collect()
    assert not path.exists()


# in a process


@pytest.mark.parametrize("evictor", EVICTORS)
def test_laws_of_a_process(evictor):
    for law in LAWS:
        law(lambda: keeping(policy(evictor)), chat("Say something.", max_tokens=16), 0.0)


@pytest.mark.parametrize("evictor", EVICTORS)
def test_keeping_all_is_plain_decoding(evictor):
    asks = mixed_asks(3, [Prefix(chat("some words " * n, max_tokens=16)) for n in (1, 9)])
    plain = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    assert [bare(a) for a in answers(keeping(policy(evictor, 1.0)), asks)] == [bare(a) for a in answers(plain, asks)]


@pytest.mark.parametrize("trigger", ["after_prompt", "every"])
@pytest.mark.parametrize("evictor", EVICTORS)
def test_an_answer_is_the_same_whatever_runs_beside_it(evictor, trigger: str):
    chosen = policy(evictor, trigger=trigger)
    crowd, prefixes = keeping(chosen, chunk=13), [Prefix(chat("y" * 70 + "x" * n, max_tokens=20)) for n in (1, 60, 60)]
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)[::2]
        found = answers(crowd, asks)
        alone = [answers(keeping(chosen), [ask])[0] for ask in asks]
        assert [bare(a) for a in found] == [bare(a) for a in alone]
        grown = [a.prefix for a in found if isinstance(a, Extension)] + [c for a in found if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::3]
    kept = crowd.kept
    assert kept.bytes_rest > 0
    assert (kept.bytes_away > 0) == isinstance(evictor, Spill)
    assert crowd.nbytes > crowd.pool.nbytes
    crowd.drop_cache()
    assert crowd.nbytes == crowd.pool.nbytes


def scores_of(process, text: str, option: str) -> float:
    return answers(process, [Score(prefix=Prefix(chat(text, max_tokens=30)), options=(option,))])[0].log_p[0]


def distance(evictor, *, is_native: bool = True) -> float:
    """How far what a second question scores is from what it scores with all keys."""
    text, second = "the quick brown fox jumps over it " * 5, "and what is it?"
    whole = scores_of(LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(is_native=is_native)), text, second)
    process = keeping(policy(evictor, 0.2), is_native=is_native)
    read_prompt(process, text)
    return abs(scores_of(process, text, second) - whole)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_second_question_finds_what_the_first_did_not_need(is_native: bool):
    dropped = distance(cache_policy("snapkv").evictor, is_native=is_native)
    assert distance(EVERYTHING, is_native=is_native) < 0.1 * dropped
    assert distance(Quantise(), is_native=is_native) < 0.2 * dropped


# what the laws must find fault with


class NextKey(Quantise):
    """Its values are those of the key behind."""

    def rest(self, view, kept):
        rest = super().rest(view, kept)
        return rest and Packed(rest.keys, dataclasses.replace(rest.values, codes=rest.values.codes.roll(1, 1)), rest.positions)


class Padded(Quantise):
    """Takes what only fills a head up for keys."""

    def rest(self, view, kept):
        rest = super().rest(view, kept)
        return rest and Packed(rest.keys, rest.values, rest.positions.clamp(min=0))


class Kept(Spill):
    """What is kept goes away too: it is met twice."""

    def rest(self, view, kept):
        return super().rest(view, [slots[:0] for slots in kept])


@pytest.mark.parametrize("mutant", [NextKey(), Padded(), Kept(recall=1000)], ids=lambda x: type(x).__name__)
def test_a_wrong_rest_is_found(mutant):
    view, kept, q = scene()
    at = torch.tensor([140, 141, 142])
    found, _ = mutant.rest(view, kept).meet(Query(q_NHE=q, at=at))
    assert (found - reference(view, kept, q, at=at)).abs().max() > 0.05


class ByTheCrowd(Spilled):
    """Brings back what the first of the queries asks for."""

    def meet(self, query):
        found = [self.meet_one(query.one(n)) for n in range(len(query))]
        return torch.cat([found[0][0]] * len(found)), torch.cat([found[0][1]] * len(found))


def test_a_rest_that_looks_at_others_is_found(monkeypatch):
    monkeypatch.setattr("ponder.accelerate.cache.spill.Spilled.meet", ByTheCrowd.meet)
    with pytest.raises(AssertionError):
        for law in LAWS:
            law(lambda: keeping(policy(Spill(recall=2))), chat("Say something. " * 3, max_tokens=16), 0.0)
        test_an_answer_is_the_same_whatever_runs_beside_it(Spill(recall=2), "every")


def test_bad_settings_are_refused():
    with pytest.raises(BadField, match="bits=3"):
        Quantise(bits=3)
    with pytest.raises(BadField, match="recall=0"):
        Spill(recall=0)
