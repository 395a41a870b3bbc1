"""Keep what the prompt's last tokens attend to, and those tokens.

Paper      SnapKV (Li et al. 2024, arXiv:2404.14469), section 4.
Equation   score_j = sum over group and last `window` rows i of a_ij, averaged over `kernel` neighbouring keys; the window itself always stays.
Shapes     view of N slots -> scores [K, N].
Guarantee  approximate: later tokens read the kept keys alone; exact under a budget that holds the prompt.
Cost       `window` rows of attention per layer, once per prompt.
Choose     long prompts whose last tokens are the question. A second question about the same prompt finds what the first one needed.
Differs    grouped heads share the keys that are kept, so scores are added over a group; the budget counts the window.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.core.errors import BadField
from ponder.core.evidence import Needs, View
from ponder.core.keeping import protected


@dataclass(frozen=True, kw_only=True)
class SnapKV:
    window: int = 32  # last tokens whose attention counts, and which stay
    kernel: int = 5  # keys of an average; odd

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise BadField(f"snapkv window={self.window}, kernel={self.kernel}: window must be at least 1 and kernel odd")

    @property
    def needs(self) -> Needs:
        return Needs(has_columns=True, num_rows=self.window)

    def score(self, view: View, budget: int) -> Tensor:
        assert view.columns is not None
        recent = view.positions >= view.num_tokens - self.window
        pooled = F.avg_pool1d(view.columns.masked_fill(recent, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.where(recent, protected(view.positions), pooled)
