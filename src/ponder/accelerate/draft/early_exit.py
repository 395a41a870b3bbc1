"""The target's first layers draw ahead, over its own keys; a small trained correction makes of their state what the last layer would say.

Paper      Bhendawade et al. 2025, "M2R2: Mixture of Multi-rate Residuals for Efficient Transformer Inference", arXiv:2502.02040; the
           correction alone as in Belrose et al. 2023 (the tuned lens), arXiv:2303.08112; drafts as in Elhoushi et al. 2024 (LayerSkip),
           arXiv:2404.16710
Equation   t_i ~ softmax(head(h + (h A) B + b)), h the state after `layer` layers and the final norm, drawn with the target's own noise,
           while q(t_i) >= least and i <= num
Shapes     contexts -> chains of at most min(num, room) tokens with chances
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       the first layers and the output head per token drafted, one pass for all requests; the correction 2 D R products. Training: minutes
Choose     models of many layers, whose head is a small part of them; a small model with a large head gains nothing (docs/speculation.md)
Differs    the paper speeds up the residual at every layer up to the exit; here it is aligned once, at the exit, by a linear map of low rank
           fitted to pairs of early and late states. Without a bridge: plain early exit
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.accelerate.draft.bridge import Bridge
from ponder.accelerate.draft.chains import Chaining
from ponder.core.draft import Host, Needs, Scope, Twin
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    layer: int | None = None  # layers that are run; None: the bridge's, or two thirds of the model's
    bridge: Bridge | None = None  # trained correction for that exit
    num: int = 4  # most tokens of a draft
    least: float = 0.4  # probability below which a token ends the draft
    is_weighed: bool = False  # says what each token was drawn from, for the `rejection` acceptor

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if (self.layer is not None and self.layer < 1) or self.num < 1 or not 0 <= self.least <= 1:
            raise BadField(f"early_exit layer={self.layer}, num={self.num}, least={self.least}: layer, num at least 1, least in [0, 1]")
        if self.bridge is not None and self.layer not in (None, self.bridge.layer):
            raise BadField(f"early_exit layer={self.layer} with a bridge for layer {self.bridge.layer}: leave layer out, or train a bridge for it")

    def open(self, host: Host) -> Chaining:
        """Raises BadField for a model without a layer behind the exit, or of another width than the bridge's."""
        layer = self.layer or (self.bridge.layer if self.bridge is not None else max(1, 2 * host.num_layers // 3))
        if not 0 < layer < host.num_layers:
            raise BadField(f"early_exit layer={layer}: must be 1 to {host.num_layers - 1} for this model")
        if self.bridge is not None and len(self.bridge.bias) != host.dim:
            raise BadField(f"bridge of {self.bridge.model_id}, width {len(self.bridge.bias)}: this model has width {host.dim}; train one on it")
        twin = Twin(skips=tuple(range(layer, host.num_layers)), bridge=self.bridge)
        return Chaining(host, host.runner(twin), self.num, self.least, self.is_weighed)
