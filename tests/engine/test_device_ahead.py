"""Working ahead of the device while tokens are guessed: what may be computed early, what it costs, and that no answer changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from engine.test_device_attend import CONFIG, crowd_on, keys_met, make, needs_triton
from engine.test_device_process import process_on
from engine.test_device_rounds import texts
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.core.asks import Ask, Extend, Prefix, Sampling, chat
from ponder.core.draft import EMPTY, Context, Host, Needs, Speculation, StepCosts, Tree, Verified, chain
from ponder.core.guarantee import Guarantee
from ponder.engine import attend_device, device_process
from ponder.engine.attend_device import cut_pieces, whole_pieces
from ponder.engine.device_process import DeviceProcess
from ponder.engine.meter import MeterAhead
from ponder.engine.rounds import Rounds
from ponder.engine.runners import ThinnedRunner
from ponder.native.paged import Batch
from ponder.testing.run import answer_turn

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True, kw_only=True)
class Told:
    """Guesses what it was told, in stretches: `on` rounds with guesses, then `off` without; 0 off: always, 0 on: never."""

    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by seed
    on: int = 2
    off: int = 3
    needs = Needs()
    guarantee, scope = Guarantee.EXACT, "request"

    def open(self, host: Host) -> "Telling":
        return Telling(self)


@dataclass
class Telling:
    settings: Told
    num_asked: int = 0

    def propose(self, contexts: Sequence[Context]) -> list[Tree]:
        self.num_asked += 1
        if self.num_asked % (self.settings.on + self.settings.off) >= self.settings.on:
            return [EMPTY] * len(contexts)
        return [chain(self.settings.answers[c.seed][c.position : c.position + 3][: c.max_depth]) for c in contexts]

    def observe(self, verified: Sequence[Verified]) -> None:
        return None

    def forget(self, request: int) -> None:
        return None


def asks(num: int = 3) -> list[Ask]:
    prompts = [chat("ab" * (1 + 9 * n), max_tokens=14 + n) for n in range(num)]
    return [Extend(prefix=Prefix(prompt), seed=n, sampling=Sampling(temperature=0.7 * (n % 2))) for n, prompt in enumerate(prompts)]


def guessing(on: int, off: int, num: int = 3) -> tuple[DeviceProcess, list[object], list[object]]:
    """A process, what it answers, and what it should."""
    wanted = list(answer_turn(asks(num), process_on("cpu")))
    told = Told(answers={ask.seed: answer.prefix.tokens for ask, answer in zip(asks(num), wanted)}, on=on, off=off)  # type: ignore[union-attr]
    process = process_on("cpu", speculation=Speculation(drafter=told, acceptor=Coupled(), control=Fixed(num=4)))
    assert isinstance(process, DeviceProcess)
    return process, list(answer_turn(asks(num), process)), wanted


def skipping() -> tuple[list[object], list[object]]:
    """What a process answers that guesses with some of its own layers, and what it should."""
    speculation = Speculation(drafter=LayerSkip(ends=0, least=0.0), acceptor=Coupled(), control=Fixed(num=3))
    return texts(answer_turn(asks(), process_on("cpu", speculation=speculation))), texts(answer_turn(asks(), process_on("cpu")))


def test_nothing_is_begun_ahead_of_guesses_that_are_written_in_its_place(monkeypatch: pytest.MonkeyPatch):
    found, wanted = skipping()
    assert found == wanted
    monkeypatch.setattr(ThinnedRunner, "is_in_place", False)
    found, wanted = skipping()
    assert found != wanted, "keys that a part of the model wrote were read as the whole one's"


@pytest.mark.parametrize(("on", "off"), [(0, 1), (1, 0), (3, 1), (2, 3)])
def test_answers_are_plain_decodings_and_steps_without_guesses_are_begun_ahead(on: int, off: int):
    process, found, wanted = guessing(on, off)
    assert texts(found) == texts(wanted)
    assert (process.totals.accepted_tokens > 5) == (on > 0)
    assert (process.num_met > 2) == (off > 0)
    assert process.num_met >= process.num_ahead - 3, "what was begun and not met is nobody's: each ask ends once at most"


def test_working_ahead_of_guesses_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    """Wrong: the rows after a step's are computed whatever rides in it, from the tokens drawn at its first rows."""
    monkeypatch.setattr(Rounds, "may_look_ahead", property(lambda self: not self.is_wanted))
    _, found, wanted = guessing(2, 1)
    assert texts(found) != texts(wanted)


def test_without_waiting_no_guess_has_a_place(monkeypatch: pytest.MonkeyPatch):
    """Wrong: what the drafter says of rows that are here is not heard, and all rows are."""
    monkeypatch.setattr(Rounds, "may_look_ahead", True)
    process, found, wanted = guessing(2, 1)
    assert texts(found) == texts(wanted)
    assert process.totals.accepted_tokens == 0


def test_a_row_that_is_here_has_no_guesses_beside_it(monkeypatch: pytest.MonkeyPatch):
    """Wrong: rows that are here are not known to be: they are computed again, and what was begun ahead is lost."""
    monkeypatch.setattr(DeviceProcess, "_is_here", lambda self, span: False)
    process, found, wanted = guessing(1, 1)
    assert texts(found) == texts(wanted)
    assert process.num_met < process.num_ahead - 3


def test_steps_are_measured_as_they_follow_each_other():
    process = process_on("cpu", speculation=Speculation(drafter=Told(), acceptor=Coupled(), control=Expected()), max_rows=5)
    free, before = process.pool.num_free, process.totals
    meter = process.rounds.meter
    assert isinstance(meter, MeterAhead)
    costs = meter.costs()
    assert [num for num, _ in costs.seconds] == [num for num in MeterAhead.widths if num <= 5]
    assert costs.waiting == meter.waiting >= 0 and meter.one == costs.seconds[0][1]
    assert process.pool.num_free == free and process.totals == before


def test_a_guess_must_pay_for_the_waiting_too():
    """A step that brings 2.4 tokens in the time of one is worth it, unless waiting takes as long as what it saves."""
    for waiting, is_worth_it in ((0.0, True), (0.05, False)):
        control = Expected(credit=1.9).open(lambda waiting=waiting: StepCosts(seconds=((1, 0.01), (16, 0.0102)), waiting=waiting))
        counts = [control.cut([1], [chain([1] * control.rooms([1])[0])], 1)] if control.rooms([1])[0] else [[0]]
        assert (counts[0][0] > 0) == is_worth_it


# ---- pieces that are always the same


@pytest.mark.parametrize("chunk", [64, 128])
def test_pieces_of_a_whole_meet_every_key_once(chunk: int):
    attention = make("cpu", False)
    spans = crowd_on(attention, 6, (130, 70, 9))
    pieces = whole_pieces(len(spans), chunk, 512)
    assert all(count == [1] * len(count) for count in keys_met(spans, pieces))
    short = whole_pieces(len(spans), chunk, 128)  # wrong: of fewer keys than there are
    assert not all(count == [1] * len(count) for count in keys_met(spans, short))


def test_tokens_of_one_sequence_share_no_pieces(monkeypatch: pytest.MonkeyPatch):
    """Of one chain all keys are the same sequence's: to cut them anew in each round costs the host more than it spares the card."""
    monkeypatch.setattr(attend_device, "MIN_SAVED", 1)
    attention = make("cpu", False)
    (span, *_) = crowd_on(attention, 2, (130, 70, 9))
    chained = [device_process.Span(span.sequence, at, at + 1, 0) for at in range(span.start - 4, span.stop)]
    assert not cut_pieces(chained, 64, CONFIG, True).shared


@needs_triton
def test_pieces_of_a_whole_read_what_is_there():
    attention = make("cpu", True)
    generator = torch.Generator().manual_seed(0)
    for table in (attention.pool.keys, attention.pool.values):
        table.copy_(torch.randn(table.shape, generator=generator))
    spans = crowd_on(attention, 4, (130, 30, 9))
    pieces = whole_pieces(len(spans), 64, 512)
    batch = Batch(
        rows=torch.tensor(attention.tables.rows([s.sequence for s in spans])), places=torch.tensor([s.start for s in spans]),
        single=torch.tensor(pieces.single, dtype=torch.int32), shared=None, num_parts=torch.tensor(pieces.num_parts, dtype=torch.int32),
        max_parts=max(pieces.num_parts),
    )  # fmt: skip
    q = torch.randn(len(spans), 6, 32, generator=generator)
    (out, lse), (wanted, wanted_lse) = attention.read(batch, 1, q, 32), attend_device.read_gathered(attention, batch, 1, q, num_pages=16)
    assert (out - wanted).abs().max() < 1e-5
    assert (lse - wanted_lse).abs().max() < 1e-5
