"""Keep what the last token attends to.

Paper      TOVA (Oren et al. 2024, arXiv:2401.06104), section 3.
Equation   score_j = mean over all heads of the layer of a_lj, l the last token, which stays.
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
        return Needs(num_rows=1)

    def score(self, view: View, budget: int) -> Tensor:
        rows = view.rows()[:, -1].view(len(view.keys), -1, view.keys.shape[1])
        heads = [by_position(rows[k], view.positions[k], view.num_tokens) for k in range(len(rows))]
        mean = torch.cat(heads).mean(0)  # of the weight that each position has, over all heads
        score = mean[view.positions.clamp(min=0)]
        return torch.where(view.positions == view.num_tokens - 1, protected(view.positions), score)


def by_position(rows: Tensor, positions: Tensor, num: int) -> Tensor:
    """[G, num]: weights [G, N] of slots at their positions [N]; zero where no slot is."""
    placed = rows.new_zeros(len(rows), num)
    held = positions >= 0
    placed[:, positions[held]] = rows[:, held]
    return placed
