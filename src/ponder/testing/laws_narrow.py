"""Laws of feed-forwards that are computed in part (core.formats.Divisible, models/narrow). Mutants are in tests/engine/test_narrow.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.formats import Divisible, LayerBody
from ponder.testing.exact import require


def law_a_part_is_a_part(matrix: Divisible, num_rows: int, num_columns: int, x_TI: Tensor, *, closeness: float) -> None:
    """Of some outputs: what the whole gives there, bit for bit. Of some inputs: what it gives where the others are 0, to rounding.
    Of all: the whole, bit for bit."""
    unit, whole = matrix.unit, matrix.apply(x_TI)
    every = torch.arange
    require(torch.equal(matrix.part(every(num_rows), None).apply(x_TI), whole), "all outputs are not the whole matrix")
    require(torch.equal(matrix.part(None, every(num_columns)).apply(x_TI), whole), "all inputs are not the whole matrix")
    rows, columns = (torch.arange(num).view(-1, unit)[1::2].flatten() for num in (num_rows, num_columns))
    require(torch.equal(matrix.part(rows, None).apply(x_TI), whole[:, rows]), "some outputs are not the whole matrix's there")
    silent = torch.zeros_like(x_TI)
    silent[:, columns] = x_TI[:, columns]
    found, wanted = matrix.part(None, columns).apply(x_TI[:, columns]).float(), matrix.apply(silent).float()
    off = float((found - wanted).abs().max() / wanted.abs().max())
    require(off <= closeness, f"some inputs: off by {off} of the largest output")


@dataclass(frozen=True)
class Narrow:
    """A layer of which some units are kept, and the whole layer with a hook: silenced(x, out, kept) is what it gives when every inner number
    but the kept ones is set to 0."""

    narrowed: Callable[[Tensor], LayerBody]  # units -> body
    silenced: Callable[[Tensor, Tensor, Tensor], Tensor]
    whole: LayerBody
    num_units: int
    unit: int


def law_what_is_left_out_is_zero(layer: Narrow, x_TD: Tensor, out_TX: Tensor, *, closeness: float) -> None:
    """A narrowed layer is the layer with the other inner numbers 0, to rounding; with all of them it is the layer, bit for bit."""
    every = torch.arange(layer.num_units)
    found = layer.narrowed(every).after(x_TD.clone(), out_TX)
    require(torch.equal(found, layer.whole.after(x_TD.clone(), out_TX)), "all units are not the whole layer")
    for kept in (every[:1], every[1::2], every[every != 1]):
        places = (kept[:, None] * layer.unit + torch.arange(layer.unit)).flatten()
        found, wanted = layer.narrowed(kept).after(x_TD.clone(), out_TX), layer.silenced(x_TD.clone(), out_TX, places)
        off = float((found - wanted).abs().max() / (wanted - x_TD).abs().max())
        require(off <= closeness, f"units {kept.tolist()}: off by {off} of what the layer adds")


def law_requests_keep_their_own(counts: Callable[[Sequence[int]], Sequence[tuple[int, int]]], num: int) -> None:
    """counts(which): (drafted, accepted) tokens of those requests when they run at once. They sum to what each has alone."""
    alone = [counts([i])[0] for i in range(num)]
    together = counts(range(num))
    require(list(together) == alone, f"drafted and accepted alone {alone}, beside others {list(together)}")
