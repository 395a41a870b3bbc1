"""Keep what the last token attends to.

Paper      TOVA (Oren et al. 2024, arXiv:2401.06104), section 3.
Equation   score_j = sum over all heads of the layer of a_lj, l the last token, which stays.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds everything.
Cost       one row of attention per layer whenever keys are dropped.
Choose     long answers under a fixed budget, at next to no cost.
Differs    evicts when its trigger says so, not at every token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class Tova:
    @property
    def needs(self) -> Needs:
        return Needs(has_columns=True, num_rows=1)

    def score(self, view: View, budget: int) -> Tensor:
        assert view.columns is not None
        held, positions = view.held, view.positions
        received = view.columns.new_zeros(view.num_tokens).index_add_(0, positions[held], view.columns[held])  # by all heads together
        return torch.where(positions == view.num_tokens - 1, protected(positions), received[positions.clamp(min=0)])
