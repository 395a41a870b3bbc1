"""The target itself, with layers left out, draws ahead over its own keys of what is committed.

Paper      Zhang et al. 2023, "Draft & Verify", arXiv:2309.08168
Equation   layers kept: the first and last `ends`, and of those between every `every`-th; t_i ~ q_kept(. | context, t_<i), drawn with the
           target's own noise, while q(t_i) >= least and i <= num
Shapes     contexts -> chains of at most min(num, room) tokens with chances
Guarantee  exact: a drafter changes no answer, only what it costs
Cost       a pass over the layers that are kept per token drafted, one for all requests; no memory: draft rows lie where the verifying
           pass writes next
Choose     models of many layers; small ones that were not trained for it lose most of their sense with a third of their layers, and
           the length control then switches this off.
Differs    layers are skipped whole and by a rule; the paper searches for attention and ffn sub-layers one by one
"""

from dataclasses import dataclass
from typing import ClassVar

from ponder.accelerate.draft.chains import Chaining, thinned
from ponder.core.draft import Host, Needs, Scope, Twin
from ponder.core.errors import BadField
from ponder.core.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True)
class LayerSkip:
    ends: int = 4  # layers at either end that stay
    every: int = 2  # of the layers between, one in so many stays
    num: int = 4  # most tokens of a draft
    least: float = 0.4  # probability below which a token ends the draft
    is_weighed: bool = False  # says what each token was drawn from, for the `rejection` acceptor

    guarantee = Guarantee.EXACT
    scope: ClassVar[Scope] = "request"
    needs = Needs()

    def __post_init__(self) -> None:
        if self.ends < 0 or self.every < 2 or self.num < 1 or not 0 <= self.least <= 1:
            raise BadField(f"layer_skip {self}: ends must be at least 0, every at least 2, num at least 1, least in [0, 1]")

    def open(self, host: Host) -> Chaining:
        """Raises BadField where it leaves out no layer."""
        return Chaining(host.runner(Twin(skips=thinned(host.num_layers, self.ends, self.every))), self.num, self.least, self.is_weighed)
