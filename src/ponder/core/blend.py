"""Two models that draw every token together: what either says of what comes next becomes one distribution.

Both read the same tokens, so theirs must be the same. What comes out is neither model's own, and is from then on what the process
calls the model: its log_p, and all that is asked of it.

Shapes: R rows, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ponder.core.draft import Twin
from ponder.core.guarantee import Guarantee


class Blend(Protocol):
    """How two models' logits become one's."""

    @property
    def guarantee(self) -> Guarantee: ...

    def mix(self, first_RV: Tensor, second_RV: Tensor) -> Tensor:
        """float32 [R, V] logits of both together, -inf for a token that they rule out, never for all of a row; arguments are finite.

        Row i depends on row i of the arguments alone, and what is added to a whole row of either changes no probability. Leaves its
        arguments as they are.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Company:
    """Another model that draws every token with a process's own."""

    twin: Twin
    blend: Blend
