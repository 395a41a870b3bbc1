"""Guessing ahead on another device, run on the CPU by the same code: the tokens of plain decoding there, chains by the recorded step."""

from dataclasses import replace

import pytest

from engine.test_device_process import DECODER, process_on
from engine.test_rounds import Guesser, asks, book_of
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.length.fixed import Fixed
from ponder.core.asks import Ask, Extend, Extension
from ponder.core.draft import Speculation
from ponder.engine.graphs import DecodeRunner
from ponder.testing.run import answer_turn

pytestmark = pytest.mark.filterwarnings("ignore")


def extends() -> list[Ask]:
    return [ask for ask in asks() if isinstance(ask, Extend)]


def texts(answers: list[object]) -> list[tuple[object, ...]]:
    return [(a.prefix.tokens, a.prefix.text, a.finish) for a in answers if isinstance(a, Extension)]


@pytest.mark.parametrize("num_paths", [1, 4], ids=["chains", "trees"])
@pytest.mark.parametrize("settings", [{}, {"max_rows": 5, "chunk": 7}], ids=["roomy", "narrow"])
def test_tokens_are_plain_decodings(num_paths: int, settings: dict[str, int], monkeypatch):
    rows: list[int] = []
    run = DecodeRunner.run
    monkeypatch.setattr(DecodeRunner, "run", lambda self, spans, tokens: rows.append(len(spans)) or run(self, spans, tokens))
    wanted = list(answer_turn(extends(), process_on("cpu", **settings)))
    num_plain = len(rows)
    guesser = Guesser(book=book_of(extends(), wanted), num_paths=num_paths)
    speculation = Speculation(drafter=guesser, acceptor=Coupled(), control=Fixed(num=8))
    process = process_on("cpu", speculation=speculation, **settings)
    found = list(answer_turn(extends(), process))
    assert texts(found) == texts(wanted)
    assert process.totals.accepted_tokens > 50
    process.drop_cache()
    assert process.pool.num_used == 0
    if num_paths == 1:
        assert max(rows[num_plain:]) > max(rows[:num_plain]), "chains are more rows of the same step"


def test_a_chain_of_which_one_row_is_lost_would_be_seen(monkeypatch):
    """The test above has teeth: a step that reads a row's place one too early gives other tokens."""
    run = DecodeRunner.run
    wrong = lambda self, spans, tokens: run(self, [replace(s, start=s.start - (i == len(spans) - 1), stop=s.stop - (i == len(spans) - 1))
                                                   for i, s in enumerate(spans)], tokens)  # fmt: skip
    wanted = list(answer_turn(extends(), process_on("cpu")))
    monkeypatch.setattr(DecodeRunner, "run", wrong)
    guesser = Guesser(book=book_of(extends(), wanted), num_paths=1)
    process = process_on("cpu", speculation=Speculation(drafter=guesser, acceptor=Coupled(), control=Fixed(num=8)))
    assert texts(list(answer_turn(extends(), process))) != texts(wanted)
    assert DECODER.device.type == "cpu"
