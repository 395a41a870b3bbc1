"""What is measured of a process's steps: it costs nothing that stays, and says so where there is no room."""

import pytest

from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.core.draft import Speculation
from ponder.engine.meter import UNKNOWN, WIDTHS
from ponder.engine.process import LocalProcess, Settings

DECODER = tiny_decoder("llama")
GUESSING = Speculation(drafter=Ngram(), acceptor=Coupled(), control=Expected())


def opened(**settings: int) -> LocalProcess:
    return LocalProcess(DECODER, ByteTokenizer(), Sarathi(), Settings(speculation=GUESSING, **settings))


def test_measuring_leaves_nothing_behind():
    process = opened()
    free, before = process.pool.num_free, process.totals
    costs = process.rounds.controlling.costs
    assert [num for num, _ in costs.seconds] == list(WIDTHS) and costs is process.rounds.meter.costs()
    assert process.pool.num_free == free and process.totals == before


@pytest.mark.parametrize("settings", [{"max_rows": 1}, {"kv_bytes": 1}])
def test_without_room_every_row_costs_a_step(settings):
    assert opened(**settings).rounds.meter.costs() is UNKNOWN
