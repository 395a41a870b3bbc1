"""Role Probe: a small function of a hidden state, read where the engine has computed that state anyway.

A probe never changes what is drawn. Its name stands for its weights too, because stored readings are found again by it.
"""

from typing import Protocol

from torch import Tensor

Row = tuple[float, ...]  # what a probe says of one state


class Probe(Protocol):
    """hidden_ND -> float64 [N, K], K fixed. Row i depends on row i of hidden_ND alone, bit for bit, whatever N is.

    Rows are a model's final hidden states, after its last norm, in its own dtype: what the output head sees.
    """

    @property
    def name(self) -> str:
        """Equal only for equal weights."""
        ...

    @property
    def model_id(self) -> str | None:
        """The model whose states it knows, as `checkpoint_of` names it; None for any. A process refuses another's."""
        ...

    def read(self, hidden_ND: Tensor) -> Tensor: ...


def checkpoint_of(model_id: str) -> str:
    """The part of a process's model_id that names weights and tokenizer, without the formats that they are run in."""
    return model_id.partition("/")[0]


def rows_of(values_NK: Tensor) -> list[Row]:
    return [tuple(row) for row in values_NK.tolist()]
