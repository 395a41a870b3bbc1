"""Keys are dropped when the prompt has been read, and at every so many tokens of the answer.

Paper      H2O (Zhang et al. 2023, arXiv:2306.14048) and TOVA (Oren et al. 2024, arXiv:2401.06104) with every=1.
Equation   next = the next multiple of `every` after the prompt.
Shapes     counts of tokens -> count.
Guarantee  approximate: keys are dropped.
Cost       a look at all keys per `every` tokens.
Choose     to follow a paper that drops a key per token.
"""

from dataclasses import dataclass

from ponder.core.errors import BadField


@dataclass(frozen=True, kw_only=True)
class Every:
    every: int = 1  # tokens of the answer

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadField(f"every={self.every}: must be at least 1 token")

    def next(self, num_tokens: int, *, num_prompt: int, num_held: int, budget: int) -> int:
        return num_prompt + ((num_tokens - num_prompt) // self.every + 1) * self.every
