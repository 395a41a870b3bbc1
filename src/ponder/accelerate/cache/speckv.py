"""Keep what a drafted continuation of the prompt attends to, and the prompt's last tokens.

Paper      SpecKV, Draft-based Approximate Inference for LLMs (Galim et al. 2025, arXiv:2506.08373), algorithm 1.
Equation   score_j = max over `kernel` neighbours of the sum over group, last `window` rows of the prompt and `ahead` drafted rows i of a_ij.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds the prompt.
Cost       what the draft takes to read the prompt and to guess, and one pass of the model over the guess; its keys are thrown away.
Choose     where what an answer needs shows only as it is written, or with a small model at hand; SnapKV is the same without a draft.
Differs    rows are summed, an option of the released code whose default is their maximum; the prompt is read densely. Without a draft
           the model guesses for itself: what the best draft could do.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.draft import Twin
from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class SpecKV:
    window: int = 32  # last tokens of the prompt whose attention counts, and which stay
    ahead: int = 16  # drafted tokens whose attention counts
    kernel: int = 7  # keys that share the largest of their scores; odd
    model: str | None = None  # name or file of the draft; None: this model
    weights: str | None = None  # weight format of the draft; None: the usual one

    def __post_init__(self) -> None:
        if min(self.window, self.ahead, self.kernel) < 1 or self.kernel % 2 == 0:
            raise BadField(f"speckv window={self.window}, ahead={self.ahead}, kernel={self.kernel}: must be at least 1, and kernel odd")

    @property
    def needs(self) -> Needs:
        return Needs(has_columns=True, num_rows=self.window, num_ahead=self.ahead, draft=Twin(model=self.model, weights=self.weights))

    def score(self, view: View, budget: int) -> Tensor:
        assert view.columns is not None
        recent = view.positions >= view.num_tokens - self.window
        pooled = F.max_pool1d(view.columns.masked_fill(recent, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.where(recent, protected(view.positions), pooled)
