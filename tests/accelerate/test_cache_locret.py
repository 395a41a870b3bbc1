"""Locret, and prompts whose keys are dropped while they are read: nothing dropped is plain decoding bit for bit, budgets are kept exactly,
an answer is the same alone and in a crowd, kept keys are those that the heads' readings say, and wrong implementations fail."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accelerate.test_cache_policies import DECODER, SMALL, keeping, read_prompt, shelved
from engine.test_process import answers, bare, mixed_asks
from engine.tiny_models import ByteTokenizer
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.cache.after_prompt import AfterPrompt
from ponder.accelerate.cache.drop import Drop
from ponder.accelerate.cache.every import Every
from ponder.accelerate.cache.h2o import H2O
from ponder.accelerate.cache.locret import Locret
from ponder.accelerate.cache.retaining_heads import RetainingHeads, load_retaining_heads, save_retaining_heads
from ponder.accelerate.cache.snapkv import SnapKV
from ponder.accelerate.cache.uniform import Uniform
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import cache_policy
from ponder.core.asks import Expansion, Extend, Extension, Prefix, Sampling, chat
from ponder.core.draft import Speculation
from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import Policy
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import LocalProcess, Settings
from ponder.engine.watch import Seen, watch
from ponder.testing.laws_process import LAWS


def random_heads(seed: int = 0, *, layers: int = 3, num: int = (6 + 2 * 2) * 16, key_heads: int = 2, width: int = 8) -> RetainingHeads:
    draws = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=draws)
    return RetainingHeads(
        model_id="tiny", mean=draw(layers, num), scale=draw(layers, num).abs() + 0.5, w_in=draw(layers, num, width) / 10, b_in=draw(layers, width),
        w_out=draw(layers, width, key_heads), b_out=draw(layers, key_heads), facts={},
    )  # fmt: skip


HEADS = random_heads()
SCORERS = {"locret": Locret(heads=HEADS, window=4), "h2o": H2O(), "snapkv": SnapKV(window=4)}


def policy(name: str, keep: float, *, chunk: int | None = None, every: int | None = None, scorer: object = None) -> Policy:
    trigger = AfterPrompt() if every is None else Every(every=every)
    return Policy(
        name=name, scorer=scorer or SCORERS[name], allocator=Uniform(), evictor=Drop(), trigger=trigger, keep=keep, chunk=chunk  # type: ignore[arg-type]
    )  # fmt: skip


CASES = [("locret", None, None), ("locret", 16, None), ("locret", None, 8), ("locret", 16, 8), ("h2o", 16, 8), ("snapkv", 24, None)]


@pytest.mark.parametrize(("name", "chunk", "every"), [("locret", None, None), ("locret", 16, 8)])
def test_laws_of_a_process(name: str, chunk: int | None, every: int | None):
    for law in LAWS:
        law(lambda: keeping(policy(name, 0.4, chunk=chunk, every=every)), chat("Say something.", max_tokens=24), 0.0)


@pytest.mark.parametrize(("name", "chunk", "every"), CASES)
def test_keeping_all_is_plain_decoding(name: str, chunk: int | None, every: int | None):
    asks = mixed_asks(3, [Prefix(chat("some words " * n, max_tokens=20)) for n in (1, 9, 20)])
    process = keeping(policy(name, 4096, chunk=chunk, every=every))
    plain = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    assert [bare(a) for a in answers(process, asks)] == [bare(a) for a in answers(plain, asks)]
    assert process.keeper.kept.num_times == 0


def crowd_and_alone(chosen: Policy, **how: int) -> tuple[list, list, int]:
    """Answers of a crowd, of each ask alone in a fresh process, and how often the crowd dropped keys."""
    crowd = keeping(chosen, **how)
    prefixes = [Prefix(chat("y" * 70 + "x" * n, max_tokens=24)) for n in (1, 60, 60)]
    found, alone = [], []
    for turn in range(2):
        asks = mixed_asks(turn, prefixes)[::2]
        together = answers(crowd, asks)
        found += [bare(a) for a in together]
        alone += [bare(answers(keeping(chosen), [ask])[0]) for ask in asks]
        grown = [a.prefix for a in together if isinstance(a, Extension)] + [c for a in together if isinstance(a, Expansion) for c in a.children]
        prefixes = [p for p in grown if not p.is_final][::3]
    assert not crowd.records
    crowd.drop_cache()
    assert crowd.pool.num_used == 0, "pages leak"
    return found, alone, crowd.keeper.kept.num_times


@pytest.mark.parametrize(("name", "chunk", "every"), CASES)
@pytest.mark.parametrize("how", [{"max_rows": 3, "chunk": 33}, {"max_rows": 5, "kv_bytes": SMALL, "chunk": 7}])
def test_an_answer_is_the_same_whatever_runs_beside_it(name: str, chunk: int | None, every: int | None, how: dict[str, int]):
    found, alone, num_times = crowd_and_alone(policy(name, 0.4, chunk=chunk, every=every), **how)
    assert found == alone
    assert num_times > 0


def test_guesses_leave_the_readings_as_they_are():
    """Keys are dropped while an answer grows, by readings of tokens that were guessed, as without a draft."""
    ask = Extend(prefix=Prefix(chat("a b c a b c " * 6, max_tokens=40)), seed=0, sampling=Sampling(temperature=0))
    chosen = policy("locret", 0.4, chunk=16, every=8)
    guess = Speculation(drafter=Ngram(), acceptor=Coupled(), control=Fixed(num=4))
    drafted = KeepingProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(cache=chosen, speculation=guess))
    (found,) = answers(drafted, [ask])
    assert found.prefix == answers(keeping(chosen), [ask])[0].prefix
    assert found.cost.accepted_tokens > 0


@dataclass(frozen=True)
class ReadsTheStep:
    """Wrong: what it says of a token depends on the tokens that are computed with it."""

    heads: RetainingHeads

    def read(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        said = self.heads.read(layer, q_THE, k_TKE, v_TKE)
        return said - said.mean(0) * torch.linspace(0, 3, len(said))[:, None]


@dataclass(frozen=True)
class Reads:
    """A scorer by another reader."""

    reader: object

    @property
    def needs(self) -> Needs:
        return Needs(reader=self.reader)  # type: ignore[arg-type]

    def score(self, view: View, budget: int) -> Tensor:
        assert view.readings is not None
        return view.readings.double()


def test_what_looks_at_its_company_is_found_out():
    chosen = policy("locret", 0.4, scorer=Reads(ReadsTheStep(HEADS)))
    found, alone, _ = crowd_and_alone(chosen, max_rows=3, chunk=33)
    assert found != alone


@pytest.mark.parametrize("chunk", [None, 16, 50])
@pytest.mark.parametrize("keep", [0.25, 0.5, 40])
def test_budgets_are_kept_exactly_and_bytes_are_given_back(chunk: int | None, keep: float):
    process = keeping(policy("locret", keep, chunk=chunk))
    read_prompt(process, "a b c d e f " * 20)
    pages = shelved(process)
    held = pages.num_tokens - pages.dropped
    assert (held == (int(keep * pages.num_tokens) if keep <= 1 else keep)).all()
    assert process.pool.num_used == pages.num_pages.sum()


def test_a_prompt_read_with_a_chunk_never_holds_more_than_budget_and_chunk():
    held = []
    for chunk in (None, 32):
        process = keeping(policy("locret", 24, chunk=chunk), chunk=32)
        process.add(Extend(prefix=Prefix(chat("word " * 80, max_tokens=1)), seed=1, sampling=Sampling(temperature=1.0)))
        most = 0
        while process.jobs:
            process.step()
            most = max([most, *(t.pages.num_tokens - int(t.pages.dropped.min()) for t in process.records if t.pages is not None)])
        held.append(most)
    assert held[1] <= 24 + 32 < held[0]


def reference(text: str, budget: int, window: int, *, shift: int = 0, rotated: bool = False) -> list[list[int]]:
    """Positions that each head of the first layer keeps, by a forward pass without pages; shift, rotated: wrong ones."""
    tokens = torch.tensor(ByteTokenizer().render((("user", text),)))
    layers: list[Seen] = []
    with torch.inference_mode():
        watch(DECODER, tokens, layers.append)
    first = layers[0]
    q, k = (first.q_THE, first.k_TKE) if rotated else (first.plain_q_THE, first.plain_k_TKE)
    said = HEADS.read(0, q, k, first.v_TKE).roll(shift, 0)
    latest = list(range(len(tokens) - window, len(tokens)))
    ranked = [latest + sorted(range(len(tokens) - window), key=lambda j: -float(said[j, head])) for head in range(2)]
    return [sorted(r[:budget]) for r in ranked]


def test_kept_keys_are_those_that_the_readings_say():
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    process = keeping(policy("locret", 0.3), chunk=7)
    read_prompt(process, text)
    pages = shelved(process)
    kept = process.keeper._slots(pages, 0, pages.num_tokens)[0].tolist()
    budget = int(0.3 * pages.num_tokens)
    assert kept == reference(text, budget, 4)
    assert kept != reference(text, budget, 4, shift=1), "off by one is not seen"
    assert kept != reference(text, budget, 4, rotated=True), "rotation is not seen"


def test_by_hand():
    """Eight tokens, budget 4, the last 2 stay: of the others the two largest readings."""
    said = torch.tensor([[0.0, 5.0, 1.0, 4.0, 3.0, 2.0, 9.0, 8.0]])
    view = View(layer=0, num_layers=1, num_tokens=8, positions=torch.arange(8)[None], read=lambda: (said, said), readings=said)
    scores = Locret(heads=HEADS, window=2).score(view, 4)
    assert sorted(scores[0].topk(4).indices.tolist()) == [1, 3, 6, 7]


def test_a_reading_does_not_depend_on_its_company():
    draws = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(300, heads, 16, generator=draws).bfloat16() for heads in (6, 2, 2))
    whole = HEADS.read(1, q, k, v)
    for lo, hi in ((0, 1), (299, 300), (17, 81), (100, 300)):
        assert torch.equal(HEADS.read(1, q[lo:hi], k[lo:hi], v[lo:hi]), whole[lo:hi])


def test_the_forward_pass_that_is_watched_is_the_engine_s():
    tokens = torch.tensor(ByteTokenizer().render((("user", "hear what the engine says " * 4),)))
    process = LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings())
    with torch.inference_mode():
        hidden = watch(DECODER, tokens, lambda seen: None)
        logits = DECODER.logits(hidden[-1:])[0]
    ask = Extend(prefix=Prefix(chat("hear what the engine says " * 4, max_tokens=1)), seed=0, sampling=Sampling(temperature=0))
    assert answers(process, [ask])[0].prefix.tokens[0] == int(logits.argmax())


def test_files_and_what_is_refused(tmp_path: Path):
    path = tmp_path / "heads.safetensors"
    save_retaining_heads(HEADS, path)
    assert load_retaining_heads(path) == HEADS
    named = cache_policy(f"{path}:0.25,chunk=16,window=8")
    assert named == replace(policy("locret", 0.25, chunk=16), scorer=Locret(heads=HEADS, window=8))
    assert policy("locret", 0.4).label != policy("locret", 0.4, scorer=Locret(heads=random_heads(1), window=4)).label
    save_retaining_heads(replace(HEADS, w_out=HEADS.w_out[:, :-1]), path)
    with pytest.raises(BadField, match="damaged"):
        load_retaining_heads(path)
    save_retaining_heads(replace(HEADS, b_in=HEADS.b_in * torch.inf), path)
    with pytest.raises(BadField, match="damaged"):
        load_retaining_heads(path)
    with pytest.raises(BadField, match="train heads on it"):
        read_prompt(keeping(policy("locret", 0.4, scorer=Locret(heads=random_heads(layers=2)))), "a b c")
    for wrong in ({"chunk": 0}, {"chunk": 8, "is_full_kept": True}):
        with pytest.raises(BadField, match="chunk"):
            replace(policy("locret", 0.4), **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadField, match="window"):
        Locret(heads=HEADS, window=-1)
