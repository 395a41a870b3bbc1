"""Guessing ahead in the engine: answers, counts and keys are plain decoding's, whatever is guessed and whatever runs beside it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from engine.test_branches import pages_of
from engine.tiny_models import VOCAB, ByteTokenizer, tiny_decoder
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.greedy import GreedyMatch
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.accept.typical import Typical
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.asks import GREEDY, Ask, Choice, Expand, Extend, Extension, Json, Prefix, Prompt, Regex, Sampling, Score, chat
from ponder.core.draft import EMPTY, ROOT, Acceptor, Context, Host, Needs, Speculation, Tree, Verified, branches
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee
from ponder.engine.pages import Sequence as Pages
from ponder.engine.process import LocalProcess, Settings
from ponder.native.build import library
from ponder.testing.laws_probe import Whole
from ponder.testing.run import answer_turn

DECODER = tiny_decoder("llama")
KERNELS = [pytest.param(True, marks=pytest.mark.skipif(library() is None, reason="no compiled kernel here")), False]
NOTHING = Needs()
ROOMY, NARROW = Settings(), Settings(max_rows=5, kv_bytes=160_000, chunk=7)


@dataclass(frozen=True, kw_only=True)
class Guesser:
    """Guesses trees of every shape from a book of right answers, some of them right to some depth, some not at all."""

    book: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)  # (seed, prompt) -> answer
    right: float = 0.6  # chance of a right token
    num_paths: int = 3
    needs: Needs = NOTHING
    guarantee, scope = Guarantee.EXACT, "request"

    def open(self, host: Host) -> "Guessing":
        return Guessing(self, host, random.Random(1))


@dataclass
class Guessing:
    settings: Guesser
    host: Host
    rng: random.Random
    seen: list[Verified] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        return [self._tree(context) for context in contexts]

    def _tree(self, context: Context) -> Tree:
        told = self.tokens.setdefault(context.request, list(context.tokens))
        assert told == list(context.tokens), "what was verified is not what was committed"
        prompt = tuple(context.tokens[: context.num_prompt])
        answer = self.settings.book.get((context.seed, prompt), ())[context.position :]
        paths = []
        for _ in range(self.rng.randint(0, self.settings.num_paths)):
            path = []
            for i in range(self.rng.randint(1, 5)):
                is_right = i < len(answer) and self.rng.random() < self.settings.right
                path.append(answer[i] if is_right else self.rng.randrange(self.host.vocab_size))
            paths.append(path)
        return branches(paths)

    def observe(self, verified: Sequence[Verified]) -> None:
        self.seen += verified
        for new in verified:
            if new.request in self.tokens:
                self.tokens[new.request] += new.tokens

    def forget(self, request: int) -> None:
        self.forgotten.append(request)


def opened(is_native: bool, settings: Settings = ROOMY, guesser: Guesser | None = None, acceptor: Acceptor | None = None) -> LocalProcess:
    speculation = None if guesser is None else Speculation(drafter=guesser, acceptor=acceptor or Coupled(), control=Fixed(num=12))
    return LocalProcess(DECODER, ByteTokenizer(), Sarathi(), replace(settings, is_native=is_native, speculation=speculation))


def asks() -> list[Ask]:
    """Every kind of wish that an Extend can hold, and others beside."""
    found: list[Ask] = []
    prompts = [chat("x" * n, max_tokens=30) for n in (1, 15, 63, 130)]
    samplings = [
        GREEDY, Sampling(), Sampling(temperature=0.7, top_k=20, top_p=0.9), Sampling(frequency_penalty=0.5, repetition_penalty=1.2),
        Sampling(temperature=0.0, presence_penalty=1.0), Sampling(min_p=0.1, logit_bias=((65, 3.0),)),
    ]  # fmt: skip
    for i, sampling in enumerate(samplings):
        found.append(Extend(prefix=Prefix(prompts[i % 4]), seed=i, sampling=sampling, certainty=True, logprobs=i % 3))
        found.append(Extend(prefix=Prefix(prompts[(i + 1) % 4]), seed=9, sampling=sampling, max_tokens=1 + 3 * i, drift=((3, 0.4),)))
    found += [
        Extend(prefix=Prefix(replace(prompts[0], stop=("a", "\x10"))), seed=4),
        Extend(prefix=Prefix(prompts[1]), seed=5, until=("e", "\x07"), probes=(Whole(num=3),)),
        Extend(prefix=Prefix(prompts[2]), seed=6, forced=(70, 71, 72, 73), probes=(Whole(num=2, name="two"),)),
        Extend(prefix=Prefix(replace(prompts[1], form=Choice(("yes, of course", "no, never", "yes, maybe")))), seed=7),
        Extend(prefix=Prefix(replace(prompts[2], form=Json())), seed=8),
        Extend(prefix=Prefix(replace(prompts[3], form=Regex("(ab|cd){3,6}x"))), seed=9, sampling=GREEDY),
        Extend(prefix=Prefix(Prompt(messages=(("raw", "go"),), max_tokens=1)), seed=1),
        Score(prefix=Prefix(prompts[0]), options=("yes", "no way")), Expand(prefix=Prefix(prompts[1]), num=3),
    ]  # fmt: skip
    return found


def told(process: LocalProcess, all_asks: Sequence[Ask]) -> list[object]:
    """Answers without what a draft may change of their cost."""
    return [replace(a, cost=replace(a.cost, drafted_tokens=0, accepted_tokens=0, flops=0.0)) for a in answer_turn(all_asks, process)]


def book_of(all_asks: Sequence[Ask], answers: Sequence[object]) -> dict[tuple[int, tuple[int, ...]], tuple[int, ...]]:
    pairs = [(ask, answer) for ask, answer in zip(all_asks, answers) if isinstance(ask, Extend) and isinstance(answer, Extension)]
    return {(ask.seed, tuple(ByteTokenizer().render(ask.prefix.prompt.messages))): answer.prefix.tokens for ask, answer in pairs}


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("settings", [ROOMY, NARROW, Settings(kv_bytes=110_000, chunk=33)], ids=["roomy", "narrow", "short of memory"])
@pytest.mark.parametrize("num_paths", [1, 3], ids=["chains", "trees"])
def test_answers_and_costs_are_plain_decodings(is_native: bool, settings: Settings, num_paths: int):
    wanted = told(opened(is_native, settings), asks())
    process = opened(is_native, settings, Guesser(book=book_of(asks(), wanted), num_paths=num_paths))
    found = told(process, asks())
    for ask, mine, theirs in zip(asks(), found, wanted, strict=True):
        if settings is not ROOMY:  # what is found in the cache depends on when asks come, there
            mine, theirs = (replace(x, cost=replace(x.cost, prompt_tokens=0, reused_tokens=0)) for x in (mine, theirs))  # type: ignore[type-var]
        assert mine == theirs, ask
    total = process.totals
    assert total.drafted_tokens > total.accepted_tokens > 20
    assert process.pool.num_used > 0 and not process.running and not process.rounds.told
    process.drop_cache()
    assert process.pool.num_used == 0, "pages of branches were lost"


@pytest.mark.parametrize("is_native", KERNELS)
@pytest.mark.parametrize("num_paths", [1, 4], ids=["chains", "trees"])
def test_after_every_step_the_keys_are_plain_decodings(is_native: bool, num_paths: int):
    """Bit for bit, keys, values and positions of every sequence under way."""
    extends = [ask for ask in asks() if isinstance(ask, Extend)]
    plain = opened(is_native)
    guesser = Guesser(book=book_of(extends, told(plain, extends)), num_paths=num_paths)
    process = opened(is_native, guesser=guesser)
    for ask in extends:
        process.add(ask)
    num_checked = 0
    while process.jobs:
        process.step()
        for _, track in process.running:
            assert track.pages is not None and track.pages.num_tokens == track.num_computed
            found = plain.store.find(tuple(track.key[: track.num_computed]))
            assert found.num_tokens == track.num_computed
            wanted = Pages(plain.pool, plain.store.pages(found), found.num_tokens)
            for mine, theirs in zip(pages_of(track.pages, track.num_computed), pages_of(wanted, track.num_computed), strict=True):
                assert torch.equal(mine, theirs)
            wanted.release()
            num_checked += 1
    assert num_checked > 100 and process.totals.accepted_tokens > 50


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_branch_of_which_the_wrong_pages_are_kept_would_be_seen(wrong: int, monkeypatch):
    """The law above has teeth: keeping always the first path's pages breaks answers."""
    extends = [ask for ask in asks() if isinstance(ask, Extend)]
    wanted = told(opened(False), extends)
    guesser = Guesser(book=book_of(extends, wanted), num_paths=4)
    if wrong:
        keep = "ponder.engine.rounds.Round._keep"
        right = __import__("ponder.engine.rounds", fromlist=["Round"]).Round._keep
        monkeypatch.setattr(keep, lambda round, last, num_computed: right(round, ROOT, num_computed))
    assert (told(opened(False, guesser=guesser), extends) == wanted) == (not wrong)


def test_greedy_acceptance_leaves_sampled_requests_alone():
    extends = [ask for ask in asks() if isinstance(ask, Extend)]
    wanted = told(opened(False), extends)
    process = opened(False, guesser=Guesser(book=book_of(extends, wanted), right=0.9), acceptor=GreedyMatch())
    assert told(process, extends) == wanted
    assert process.model_id == opened(False).model_id
    assert process.totals.accepted_tokens > 10


@pytest.mark.parametrize("acceptor", [Rejection(), Typical()], ids=["rejection", "typical"])
def test_other_acceptors_answer_within_every_wish(acceptor: Acceptor):
    """Greedy answers are plain decoding's; all keep to forms, limits and stop strings; log-probabilities are those of the tokens."""
    wanted = told(opened(False), asks())
    process = opened(False, guesser=Guesser(book=book_of(asks(), wanted)), acceptor=acceptor)
    found = told(process, asks())
    assert process.model_id != opened(False).model_id
    checked = opened(False)
    for ask, mine, theirs in zip(asks(), found, wanted):
        if not isinstance(ask, Extend) or not isinstance(mine, Extension):
            continue
        if ask.sampling.temperature == 0:
            assert mine == theirs
        if ask.prefix.prompt.form is None:
            again = told(checked, [replace(ask, forced=mine.prefix.tokens, max_tokens=len(mine.prefix.tokens))])[0]
            assert isinstance(again, Extension)
            assert again.prefix.tokens == mine.prefix.tokens and abs(again.prefix.log_p - mine.prefix.log_p) < 1e-4
            assert abs(again.prefix.log_q - mine.prefix.log_q) < 1e-4, "but for the rounding of exp in the two samplers"
        elif isinstance(ask.prefix.prompt.form, Choice) and mine.finish == "stop":
            assert mine.prefix.text in ask.prefix.prompt.form.options
    assert process.totals.accepted_tokens > 20


def test_what_was_asked_for_is_shown():
    """Top tokens and hidden states of every row: those of row 0 are what plain decoding saw; requests are forgotten once."""
    extends = [ask for ask in asks() if isinstance(ask, Extend) and ask.sampling == GREEDY and ask.prefix.prompt.form is None]
    wanted = told(opened(False), extends)
    process = opened(False, guesser=Guesser(book=book_of(extends, wanted), needs=Needs(num_top=3, hidden=True)))
    assert told(process, extends) == wanted
    drafting = process.rounds.drafting
    assert isinstance(drafting, Guessing) and sorted(drafting.forgotten) == list(range(1, len(extends) + 1))
    assert any(new.tree is not EMPTY and new.path for new in drafting.seen)
    for new in drafting.seen:
        assert new.top is not None and new.hidden is not None
        rows = [0, *(i + 1 for i in new.path)][: len(new.tokens)]
        assert new.top.shape == (1 + len(new.tree), 3) and new.top[rows, 0].tolist() == list(new.tokens)
        assert torch.equal(DECODER.logits(new.hidden).topk(3).indices, new.top)


def test_no_draft_is_longer_than_what_may_still_be_said():
    @dataclass(frozen=True, kw_only=True)
    class Long(Guesser):
        def open(self, host):
            class Drafting(Guessing):
                def propose(self, contexts):
                    assert all(0 < c.max_depth <= c.room and c.position + c.max_depth < 9 for c in contexts)
                    return [branches([[65] * 40]) for _ in contexts]

            return Drafting(self, host, random.Random(0))

    process = opened(False, guesser=Long())
    (answer,) = told(process, [Extend(prefix=Prefix(chat("x", max_tokens=9)), seed=0, sampling=Sampling(logit_bias=((65, 50.0),)))])
    assert isinstance(answer, Extension) and answer.prefix.tokens == (65,) * 9
    assert process.totals.drafted_tokens == process.totals.accepted_tokens == 7


def test_tokens_of_another_model_are_refused():
    class Foreign(Guesser):
        def open(self, host):
            class Drafting(Guessing):
                def propose(self, contexts):
                    return [branches([[VOCAB]]) for _ in contexts]

            return Drafting(self, host, random.Random(0))

    with pytest.raises(BadField, match="draft with the same tokens"):
        told(opened(False, guesser=Foreign()), [Extend(prefix=Prefix(chat("x")), seed=0)])


def test_cancelling_between_rounds_gives_back_everything():
    wanted = told(opened(False), asks()[:4])
    process = opened(False, guesser=Guesser(book=book_of(asks()[:4], wanted), num_paths=4))
    tickets = [process.add(ask) for ask in asks()[:4]]
    for _ in range(5):
        process.step()
    for ticket in [t for t in tickets if t in process.jobs]:
        answer = process.cancel(ticket)
        assert isinstance(answer, Extension) and answer.prefix.tokens
    process.drop_cache()
    assert process.pool.num_used == 0 and not process.rounds.told
