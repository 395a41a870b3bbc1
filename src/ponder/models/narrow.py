"""A layer with some of the inner numbers of its feed-forward left out, and what shows these numbers.

An inner number is act(gate x) * up x in one place: a row of the gate, a row of up and a column of down, which go together.

Shapes: T flat tokens, D width, F ffn width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.formats import Divisible, LayerBody, LayerWeights, Linear


@dataclass(frozen=True, eq=False)
class Seen:
    """A Linear that notes what it is shown; as `down`, a layer's inner numbers."""

    inner: Linear
    notes: list[Tensor]

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def apply(self, x: Tensor) -> Tensor:
        self.notes.append(x.float())
        return self.inner.apply(x)


def shown(layer: LayerWeights, notes: list[Tensor]) -> LayerWeights:
    """The layer with its inner numbers noted, float32 [T, F], when a plain body computes it."""
    assert layer.down is not None
    return replace(layer, down=Seen(layer.down, notes))


def unit_of(layer: LayerWeights, ffn_dim: int) -> int:
    """Neighbouring inner numbers that can only be kept together. Raises BadField for a layer that cannot be narrowed."""
    matrices = (layer.gate_up, layer.down)
    if not all(isinstance(matrix, Divisible) for matrix in matrices):
        kinds = ", ".join(type(matrix).__name__ for matrix in matrices)
        raise BadField(f"layer of {kinds}: its feed-forward cannot be had in part; open a model without experts, in weights native, bf16 or fp32")
    unit = max(matrix.unit for matrix in matrices if isinstance(matrix, Divisible))
    if ffn_dim % unit:
        raise BadField(f"feed-forward of width {ffn_dim}: no multiple of {unit}, which this weight format keeps together; use bf16 or fp32")
    return unit


def narrowed(layer: LayerWeights, units: Tensor, unit: int, ffn_dim: int) -> LayerWeights:
    """The layer with the inner numbers of those units alone (int64, ascending). Raises BadField for units that it does not have."""
    gate_up, down = layer.gate_up, layer.down
    assert isinstance(gate_up, Divisible)
    assert isinstance(down, Divisible)
    if not len(units) or int(units[0]) < 0 or int(units[-1]) >= ffn_dim // unit or bool((units.diff() <= 0).any()):
        raise BadField(f"units {units.tolist()}: must be some of 0 to {ffn_dim // unit - 1}, ascending, each once")
    kept = (units[:, None] * unit + torch.arange(unit, device=units.device)).flatten()
    return replace(layer, gate_up=gate_up.part(rows=torch.cat([kept, kept + ffn_dim])), down=down.part(columns=kept))


@dataclass(frozen=True, eq=False)
class ByRuns:
    """A LayerBody that goes through `whole` up to attention, and after it through another body for each run of rows.

    runs: (start, stop, body), one after the other, all rows; none of them a prompt's.
    """

    whole: LayerBody
    runs: Sequence[tuple[int, int, LayerBody]]

    @property
    def of_prompts(self) -> LayerBody:
        return self

    def before(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.whole.before(x_TD, cos, sin)

    def after(self, x_TD: Tensor, out_TX: Tensor) -> Tensor:
        if len(self.runs) == 1:
            return self.runs[0][2].after(x_TD, out_TX)
        return torch.cat([body.after(x_TD[start:stop], out_TX[start:stop]) for start, stop, body in self.runs])
