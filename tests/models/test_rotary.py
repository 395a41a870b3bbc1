"""Rotary angles computed on demand: the same bits as the whole table, in whatever order positions come, and no more than were needed."""

import pytest
import torch
from torch import Tensor

from ponder.core.formats import ModelConfig
from ponder.models.rotary import STEP, Rotary, rotary_rows

BITS = torch.int32
CONFIG = ModelConfig(
    arch="llama", num_layers=1, dim=64, num_heads=2, num_kv_heads=1, head_dim=32, ffn_dim=64, vocab_size=10, context_len=5000, norm_eps=1e-5,
    rope_theta=10000.0, rope_scale=1.25, rope_factors=tuple(1 + i / 10 for i in range(12)), rotary_dim=24, rope_local_theta=500.0,
)  # fmt: skip
ORDERS = {
    "one by one": [[p] for p in (0, 1, 2, STEP - 1, STEP, STEP + 1)],
    "far first": [[4999], [3, 4998], [0]],
    "in pieces": [list(range(i, i + 700)) for i in range(0, 4900, 700)],
    "nothing": [[], [7]],
}


def differing(rotary: Rotary, order: list[list[int]]) -> int:
    whole = rotary_rows(CONFIG, rotary.kind, 0, CONFIG.context_len)
    wrong = 0
    for positions in order:
        at = torch.tensor(positions, dtype=torch.int64)
        for found, wanted in zip(rotary.at(at), whole, strict=True):
            assert found.shape == (len(positions), 1, 32)
            wrong += int((found.view(BITS) != wanted[at].view(BITS)).sum())
    return wrong


@pytest.mark.parametrize("kind", ["global", "local", "none"])
@pytest.mark.parametrize("order", ORDERS)
def test_angles_are_those_of_the_whole_table(kind: str, order: str):
    assert differing(Rotary(CONFIG, kind), ORDERS[order]) == 0


class Restarted(Rotary):
    """Wrong: what it adds begins at position 0 again."""

    def upto(self, num: int) -> tuple[Tensor, Tensor]:
        while len(self.known[0]) < num:
            more = rotary_rows(self.config, self.kind, 0, STEP)
            self.known = torch.cat([self.known[0], more[0]]), torch.cat([self.known[1], more[1]])
        return self.known


def test_a_table_that_goes_on_wrongly_is_seen():
    assert differing(Restarted(CONFIG, "global"), ORDERS["one by one"]) > 0


def test_no_more_than_was_needed_and_nothing_beyond_the_context():
    rotary = Rotary(CONFIG, "global")
    assert rotary.nbytes == 0
    rotary.at(torch.tensor([5]))
    assert rotary.nbytes == 2 * STEP * 32 * 4
    rotary.at(torch.tensor([4999]))
    assert rotary.nbytes == 2 * 5000 * 32 * 4
    with pytest.raises(IndexError):
        rotary.at(torch.tensor([5000]))
