"""Keep the keys that trained heads expect later queries to attend to, and the latest.

Paper      Locret (Huang et al. 2024, arXiv:2410.01805), section 3.
Equation   score_j = reading of token j by the retaining head of its layer: predicted log of the most attention that it will receive
Shapes     view of N slots -> scores [K, N]
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds everything
Cost       two small products per token and layer; no attention is computed again. Training once, minutes.
Choose     several questions about one long text, when none of them is known yet; with `chunk`, prompts whose keys do not fit into memory.
           Heads know one model and the kind of text that they were trained on.
Differs    heads predict the log of the attention weight, where the paper's predict the score before the softmax, whose level differs from row
           to row; budgets are those of all policies, where the paper keeps 2,500 latest tokens of a chunk and 100 of the last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.accelerate.cache.retaining_heads import RetainingHeads
from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class Locret:
    heads: RetainingHeads
    window: int = 32  # latest tokens that stay

    def __post_init__(self) -> None:
        if self.window < 0:
            raise BadField(f"locret window={self.window}: must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(reader=self.heads)

    def score(self, view: View, budget: int) -> Tensor:
        assert view.readings is not None
        recent = view.positions >= view.num_tokens - self.window
        return torch.where(recent, protected(view.positions), view.readings.double())
