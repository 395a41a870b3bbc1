"""Keep the keys that have received most attention so far, and the latest.

Paper      H2O (Zhang et al. 2023, arXiv:2306.14048), section 4.
Equation   score_j = sum over rows i and the group of a_ij; `recent` of the budget are the latest keys.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds everything.
Cost       the weights of all rows once more, in blocks: about half of attention again while a prompt is read.
Choose     long answers, where what matters shows itself over time; for a question at the end of a prompt SnapKV costs less.
Differs    evicts when its trigger says so, not at every token; grouped heads share keys, so a group's sums are added.
           is_mean divides by the number of rows that could see a key, as kvpress's ObservedAttention does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class H2O:
    recent: float = 0.5  # share of the budget that the latest keys have
    decay: float = 1.0  # of what was received, per later row
    is_mean: bool = False  # per row that could see the key

    def __post_init__(self) -> None:
        if not (0 <= self.recent <= 1 and 0 < self.decay <= 1):
            raise BadField(f"h2o recent={self.recent}, decay={self.decay}: recent must be in [0, 1] and decay in (0, 1]")

    @property
    def needs(self) -> Needs:
        return Needs(has_columns=True, decay=self.decay)

    def score(self, view: View, budget: int) -> Tensor:
        assert view.columns is not None
        sums = view.columns / (view.num_tokens - view.positions).clamp(min=1) if self.is_mean else view.columns
        num_recent = int(self.recent * budget)
        return torch.where(view.positions >= view.num_tokens - num_recent, protected(view.positions), sums)
